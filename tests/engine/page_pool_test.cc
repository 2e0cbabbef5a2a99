#include "engine/page_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace lapidary {
namespace {

TEST(PagePool, HandsOutEveryPageOnceAndTakesItBack) {
  PagePool pool(5);
  std::set<PageId> pages;
  for (int i = 0; i < 5; ++i) pages.insert(pool.Allocate());
  EXPECT_EQ(pages.size(), 5u);
  EXPECT_EQ(*pages.begin(), PageId{0});
  EXPECT_EQ(*pages.rbegin(), PageId{4});
  EXPECT_EQ(pool.free(), 0);
  pool.Release(PageId{3});
  EXPECT_EQ(pool.used(), 4);
  EXPECT_EQ(pool.Allocate(), PageId{3});
}

TEST(PagePool, AnUnnamedPageIsFreeAfterItsLastReader) {
  PagePool pool(1);
  const PageId page = pool.Allocate();
  pool.AddReader(page);
  EXPECT_EQ(pool.readers(page), 2);
  EXPECT_EQ(pool.shared(), 1);
  pool.AddReader(page);
  EXPECT_EQ(pool.shared(), 1);
  pool.Release(page);
  pool.Release(page);
  EXPECT_EQ(pool.shared(), 0);
  EXPECT_EQ(pool.used(), 1);
  pool.Release(page);
  EXPECT_EQ(pool.free(), 1);
}

TEST(PagePool, AnIdleReaderKeepsAPageAndSharesItWithNobody) {
  PagePool pool(1);
  const PageId page = pool.Allocate();
  pool.AddReader(page);
  pool.MakeIdle(page);
  EXPECT_EQ(pool.readers(page), 2);
  EXPECT_EQ(pool.active_readers(page), 1);
  EXPECT_EQ(pool.shared(), 0);
  pool.AddReader(page);
  EXPECT_EQ(pool.shared(), 1);
  pool.MakeActive(page);
  EXPECT_EQ(pool.shared(), 1);
  pool.Release(page);
  EXPECT_EQ(pool.shared(), 1);
  pool.MakeIdle(page);
  pool.Release(page);  // the active one
  EXPECT_EQ(pool.shared(), 0);
  EXPECT_EQ(pool.used(), 1);
}

TEST(PagePool, ANamedPageIsCachedAfterItsLastReaderAndCanBeReadAgain) {
  PagePool pool(2);
  const PageId page = pool.Allocate();
  pool.Name(page);
  pool.Release(page);
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.available(), 2);
  pool.AddReader(page);
  EXPECT_EQ(pool.used(), 1);
  pool.Unname(page);  // read: stays with its reader
  EXPECT_EQ(pool.used(), 1);
  pool.Release(page);
  EXPECT_EQ(pool.free(), 2);
}

TEST(PagePool, EvictsTheSoonerKindFirstThenTheLongestUnused) {
  PagePool pool(4);
  for (int i = 0; i < 4; ++i) pool.Name(pool.Allocate());
  pool.Release(PageId{0});
  pool.Release(PageId{1});
  pool.Release(PageId{2}, Evict::kSooner);
  pool.Release(PageId{3}, Evict::kSooner);
  pool.Touch(PageId{0});  // used after 1
  std::vector<int32_t> order;
  while (pool.cached() > 0) {
    order.push_back(pool.NextToEvict().value);
    pool.Unname(pool.NextToEvict());
  }
  EXPECT_EQ(order, (std::vector<int32_t>{2, 3, 1, 0}));
  EXPECT_EQ(pool.free(), 4);
}

TEST(PagePool, TouchingWhatIsNotCachedDoesNothing) {
  PagePool pool(2);
  const PageId page = pool.Allocate();
  pool.Touch(page);
  EXPECT_EQ(pool.used(), 1);
  pool.Release(page);
  pool.Touch(page);
  EXPECT_EQ(pool.free(), 2);
}

TEST(PagePoolDeathTest, ADoubleReleaseIsABug) {
  PagePool pool(2);
  const PageId page = pool.Allocate();
  EXPECT_DEATH(pool.MakeActive(page), "broken invariant");
  pool.Release(page);
  EXPECT_DEATH(pool.Release(page), "broken invariant");
  EXPECT_DEATH(pool.Release(PageId{2}), "broken invariant");
  EXPECT_DEATH(pool.AddReader(page), "broken invariant");
  EXPECT_DEATH(pool.Name(page), "broken invariant");
}

}  // namespace
}  // namespace lapidary
