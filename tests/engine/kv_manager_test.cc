#include "engine/kv_manager.h"

#include <gtest/gtest.h>

namespace lapidary {
namespace {

constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);

TEST(KvManager, PagesSpannedIsTheWorstAlignment) {
  for (int32_t span = 1; span <= 70; ++span) {
    int32_t worst = 0;
    for (int32_t first = 0; first < kPageTokens; ++first) {
      worst = std::max(worst, (first + span - 1) / kPageTokens + 1);
    }
    EXPECT_EQ(PagesSpanned(span), worst) << "span " << span;
  }
}

// The first key that a query reads, by counting back: itself and the window - 1 before it.
int32_t FirstKey(int32_t query, int32_t window) {
  int32_t key = query;
  for (int32_t i = 1; i < window && key > 0; ++i) --key;
  return key;
}

// Against the definition: a page is live while the next query, or a later one, reads any of its
// positions; with a prefix cache also while the end of the last full page reads it. The interesting
// lengths are the window's edge, one less and one more.
TEST(KvManager, SlidingPagesAreLeftExactlyBehindTheWindow) {
  for (const bool prefix_cache : {false, true}) {
    for (const int32_t window : {1, 2, 15, 16, 17, 31, 32, 33, 40, 64, 512, 1024}) {
      KvManager kv({200, 200}, window, prefix_cache);
      SequencePages pages;
      int32_t peak = 0;
      for (int32_t len = 1; len <= window + 3 * kPageTokens; ++len) {
        kv.Extend(pages, len);
        peak = std::max(peak, pages.live(KvFamily::kSliding));
        kv.FreeBehindWindow(pages, len);
        const int32_t reader = prefix_cache ? len - len % kPageTokens : len;
        const int32_t first_key = FirstKey(reader, window);
        int32_t first_read = 0;  // the first page with a position that is read
        while (first_read * kPageTokens + kPageTokens - 1 < first_key) ++first_read;
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
}

// Windows of Gemma 4: the query one before the last that reads a page, that one, and one after.
TEST(KvManager, WindowEdgeAtMinusOneZeroAndPlusOne) {
  for (const int32_t window : {512, 1024}) {
    KvManager kv({100, 100}, window);
    SequencePages pages;
    kv.Extend(pages, window + kPageTokens);
    for (int32_t page = 0; page < 2; ++page) {
      // Position p is read last by the query at p + window - 1.
      const int32_t last_reader = page * kPageTokens + kPageTokens - 1 + window - 1;
      for (const int32_t next_query : {window - 1, window, window + 1, last_reader - 1}) {
        kv.FreeBehindWindow(pages, next_query);
        EXPECT_EQ(pages.first_live[kSliding], page) << window << " before " << next_query;
      }
      kv.FreeBehindWindow(pages, last_reader);
      EXPECT_EQ(pages.first_live[kSliding], page) << window << " is still read";
      kv.FreeBehindWindow(pages, last_reader + 1);
      EXPECT_EQ(pages.first_live[kSliding], page + 1) << window << " is read no more";
    }
    kv.FreeAll(pages);
  }
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

// a and b begin with the same three pages. What they share depends on who of them is active.
TEST(KvManager, OnlyActiveSequencesShare) {
  KvManager kv({0, 10}, 0, /*prefix_cache=*/true);
  const std::vector<TokenId> tokens(60, 7);
  SequencePages a, b;
  kv.Extend(a, 60);
  kv.Publish(a, "", tokens, 60);
  EXPECT_EQ(kv.Attach(b, "", tokens, 59), 48);
  const auto shared = [&] {
    return std::array<int32_t, 3>{kv.SharedGlobalPages(a), kv.SharedGlobalPages(b),
                                  kv.pool(KvFamily::kGlobal).shared()};
  };
  EXPECT_EQ(shared(), (std::array{3, 3, 3}));
  kv.SetIdle(b, true);  // b's pages are all a's, a's are a's own
  EXPECT_EQ(shared(), (std::array{0, 3, 0}));
  kv.SetIdle(a, true);
  EXPECT_EQ(shared(), (std::array{0, 0, 0}));
  kv.SetIdle(b, false);
  EXPECT_EQ(shared(), (std::array{3, 0, 0}));
  kv.FreeAll(a);
  EXPECT_FALSE(a.idle);
  EXPECT_EQ(shared(), (std::array{0, 0, 0}));
  kv.FreeAll(b);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 0);
}

}  // namespace
}  // namespace lapidary
