#include "engine/kv_manager.h"

#include <gtest/gtest.h>

#include <set>

namespace lapidary {
namespace {

constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);

TEST(PagePool, HandsOutEveryPageOnceAndTakesItBack) {
  PagePool pool(5);
  std::set<PageId> pages;
  for (int i = 0; i < 5; ++i) pages.insert(pool.Allocate());
  EXPECT_EQ(pages.size(), 5u);
  EXPECT_EQ(*pages.begin(), PageId{0});
  EXPECT_EQ(*pages.rbegin(), PageId{4});
  EXPECT_EQ(pool.free(), 0);
  pool.Free(PageId{3});
  EXPECT_EQ(pool.used(), 4);
  EXPECT_EQ(pool.Allocate(), PageId{3});
}

TEST(PagePoolDeathTest, ADoubleFreeIsABug) {
  PagePool pool(2);
  const PageId page = pool.Allocate();
  pool.Free(page);
  EXPECT_DEATH(pool.Free(page), "broken invariant");
  EXPECT_DEATH(pool.Free(PageId{2}), "broken invariant");
}

TEST(KvManager, PagesSpannedIsTheWorstAlignment) {
  for (int32_t span = 1; span <= 70; ++span) {
    int32_t worst = 0;
    for (int32_t first = 0; first < kPageTokens; ++first) {
      worst = std::max(worst, (first + span - 1) / kPageTokens + 1);
    }
    EXPECT_EQ(PagesSpanned(span), worst) << "span " << span;
  }
}

// Against the definition: a page is live while the next query, or a later one, reads any of its
// positions. The interesting lengths are the window's edge, one less and one more.
TEST(KvManager, SlidingPagesAreFreedExactlyBehindTheWindow) {
  for (const int32_t window : {1, 2, 15, 16, 17, 31, 32, 33, 40, 64, 1024}) {
    KvManager kv({200, 200}, window);
    SequencePages pages;
    int32_t peak = 0;
    for (int32_t len = 1; len <= window + 3 * kPageTokens; ++len) {
      kv.Extend(pages, len);
      peak = std::max(peak, pages.live(KvFamily::kSliding));
      kv.FreeBehindWindow(pages, len);
      const int32_t next_query = len;
      int32_t first_read = 0;
      while (first_read * kPageTokens + kPageTokens - 1 < next_query - window + 1) ++first_read;
      const int32_t entries = PagesFor(len);
      ASSERT_EQ(pages.first_live[kSliding], std::min(first_read, entries))
          << "window " << window << ", " << len << " tokens";
      ASSERT_EQ(kv.pool(KvFamily::kSliding).used(), entries - pages.first_live[kSliding]);
      ASSERT_EQ(kv.pool(KvFamily::kGlobal).used(), entries);
    }
    EXPECT_EQ(peak, kv.PagesAtLength(1 << 20)[kSliding]) << "window " << window;
    kv.FreeAll(pages);
    EXPECT_EQ(kv.pool(KvFamily::kSliding).used(), 0);
    EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 0);
  }
}

TEST(KvManager, WindowEdgeOfOneThousandTwentyFour) {
  // The query at position 1038 is the last to read position 15 (1038 - 1024 + 1 = 15).
  KvManager kv({100, 100}, 1024);
  SequencePages pages;
  kv.Extend(pages, 1040);
  for (const int32_t next_query : {1023, 1024, 1025, 1038}) {
    kv.FreeBehindWindow(pages, next_query);
    EXPECT_EQ(pages.first_live[kSliding], 0) << next_query;
  }
  kv.FreeBehindWindow(pages, 1039);
  EXPECT_EQ(pages.first_live[kSliding], 1);
}

TEST(KvManager, GrowsOnlyAsFarAsTheScarcerFamily) {
  KvManager kv({3, 5}, 64);
  SequencePages pages;
  EXPECT_EQ(kv.ReachableLength(pages, 1000), 48);
  EXPECT_EQ(kv.ReachableLength(pages, 40), 40);
  const auto added = kv.Extend(pages, 17);
  EXPECT_EQ(added[kSliding], (std::vector<PageId>{PageId{0}, PageId{1}}));
  EXPECT_EQ(added[kGlobal], (std::vector<PageId>{PageId{0}, PageId{1}}));
  EXPECT_TRUE(kv.Extend(pages, 32)[kGlobal].empty());
  EXPECT_EQ(kv.ReachableLength(pages, 1000), 48);
}

TEST(KvManager, AnAbsentFamilyCostsNothing) {
  KvManager only_global({0, 2}, 0);
  SequencePages pages;
  EXPECT_EQ(only_global.ReachableLength(pages, 1000), 32);
  only_global.Extend(pages, 20);
  only_global.FreeBehindWindow(pages, 20);
  EXPECT_EQ(pages.table[kSliding].size(), 0u);
  KvManager only_sliding({2, 0}, 4);
  EXPECT_EQ(only_sliding.PagesAtLength(100), (std::array<int32_t, 2>{2, 0}));
}

}  // namespace
}  // namespace lapidary
