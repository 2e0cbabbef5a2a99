#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <numeric>

#include "engine/kv_manager.h"

namespace lapidary {
namespace {

constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);
constexpr int32_t kNoLimit = 1 << 30;

uint64_t EverythingCollides(uint64_t, std::span<const TokenId>) { return 7; }

// `len` tokens from `first` on: 0, 1, 2 ... for first = 0.
std::vector<TokenId> Tokens(int32_t len, TokenId first = 0) {
  std::vector<TokenId> tokens(static_cast<size_t>(len));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<TokenId> Join(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// A sequence that computes its tokens in chunks, as the scheduler drives it.
struct Sequence {
  Sequence(KvManager& manager, std::vector<TokenId> all, std::string_view cache_key = "")
      : kv(manager), tokens(std::move(all)), key(cache_key) {
    cached = computed = kv.Attach(pages, key, tokens, kNoLimit);
  }

  void ComputeTo(int32_t len) {
    ASSERT_EQ(kv.ReachableLength(pages, len), len);
    kv.Extend(pages, len);
    computed = len;
    kv.Publish(pages, key, tokens, computed);
    kv.FreeBehindWindow(pages, computed);
  }
  void Compute(int32_t chunk = 1 << 20) {
    while (computed < std::ssize(tokens)) {
      ComputeTo(std::min(computed + chunk, static_cast<int32_t>(tokens.size())));
    }
  }
  void End() { kv.FreeAll(pages); }

  KvManager& kv;
  std::vector<TokenId> tokens;
  std::string key;
  SequencePages pages;
  int32_t cached = 0;
  int32_t computed = 0;
};

// Computes and ends one; returns what it found cached.
int32_t RunOne(KvManager& kv, std::vector<TokenId> tokens, std::string_view key = "") {
  Sequence sequence(kv, std::move(tokens), key);
  sequence.Compute();
  sequence.End();
  return sequence.cached;
}

int32_t Look(KvManager& kv, const std::vector<TokenId>& tokens, int32_t limit = kNoLimit,
             std::string_view key = "") {
  SequencePages pages;
  const int32_t len = kv.Attach(pages, key, tokens, limit);
  kv.FreeAll(pages);
  return len;
}

TEST(PrefixCache, FindsWholePagesAndNeverTheLastToken) {
  KvManager kv({50, 50}, 64, true);
  EXPECT_EQ(RunOne(kv, Tokens(80)), 0);
  EXPECT_EQ(Look(kv, Tokens(80)), 64);  // the token at 79 is computed, so its page is
  EXPECT_EQ(Look(kv, Tokens(81)), 80);
  EXPECT_EQ(Look(kv, Tokens(200)), 80);
  EXPECT_EQ(Look(kv, Tokens(200), 79), 64);
  EXPECT_EQ(Look(kv, Tokens(200), 15), 0);
  EXPECT_EQ(Look(kv, Join(Tokens(50), Tokens(50, 900))), 48);
  EXPECT_EQ(Look(kv, Tokens(80, 1)), 0);
  EXPECT_EQ(Look(kv, {}), 0);
}

TEST(PrefixCache, OffItFindsNothingAndKeepsNothing) {
  KvManager kv({50, 50}, 64);
  EXPECT_EQ(RunOne(kv, Tokens(80)), 0);
  EXPECT_EQ(Look(kv, Tokens(80)), 0);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).free(), 50);
}

TEST(PrefixCache, OnlyTheSameKeyShares) {
  KvManager kv({50, 50}, 64, true);
  RunOne(kv, Tokens(48), "tenant a");
  EXPECT_EQ(Look(kv, Tokens(48), kNoLimit, "tenant b"), 0);
  EXPECT_EQ(Look(kv, Tokens(48)), 0);
  EXPECT_EQ(Look(kv, Tokens(48), kNoLimit, "tenant a"), 32);
}

// Blocks 0 to 7, whose sliding page number `hole` was evicted. By the definition: a sequence whose
// next query is at 16 n reads the window - 1 positions before it; all must be held.
TEST(PrefixCache, IsResumedExactlyWhereTheWindowIsHeld) {
  constexpr int32_t kBlocks = 8;
  for (const int32_t window : {1, 2, 15, 16, 17, 18, 31, 32, 33, 34, 47, 48, 49, 50, 200}) {
    for (int32_t hole = 0; hole < kBlocks; ++hole) {
      PrefixCache::Pools pools{PagePool(kBlocks), PagePool(kBlocks)};
      PrefixCache cache(pools, {true, true}, window);
      SequencePages pages;
      for (int32_t i = 0; i < kBlocks; ++i) {
        for (int f = 0; f < kKvFamilies; ++f) pages.table[f].push_back(pools[f].Allocate());
      }
      const std::vector<TokenId> tokens = Tokens(kBlocks * kPageTokens);
      cache.Publish(pages.published, "", tokens, kBlocks,
                    PageTables{pages.table, pages.first_live});
      cache.Release(KvFamily::kSliding, pages.table[kSliding][hole], true);
      cache.EvictOne(KvFamily::kSliding);
      ASSERT_EQ(pools[kSliding].free(), 1);
      for (int32_t most = 0; most <= kBlocks; ++most) {
        int32_t expected = 0;
        for (int32_t n = 1; n <= most; ++n) {
          bool held = true;
          for (int32_t back = 1; back < window; ++back) {
            const int32_t position = n * kPageTokens - back;
            held = held && (position < 0 || position / kPageTokens != hole);
          }
          if (held) expected = n;
        }
        ASSERT_EQ(cache.Find("", tokens, most).position.blocks, expected)
            << "window " << window << ", hole " << hole << ", at most " << most;
      }
    }
  }
}

TEST(PrefixCache, AHashFindsAnExactCompareDecides) {
  KvManager kv({90, 90}, 64, true, EverythingCollides);
  RunOne(kv, Tokens(64));
  RunOne(kv, Tokens(64), "other key");
  RunOne(kv, Tokens(64, 5000));
  RunOne(kv, Join(Tokens(16, 5000), Tokens(48)));  // the same tokens after another beginning
  EXPECT_EQ(Look(kv, Tokens(100)), 64);
  EXPECT_EQ(Look(kv, Tokens(100, 5000)), 64);
  EXPECT_EQ(Look(kv, Tokens(100, 16)), 0);  // known only in the middle of others
  EXPECT_EQ(Look(kv, Join(Tokens(16, 5000), Tokens(32))), 32);
  EXPECT_EQ(Look(kv, Join(Tokens(16), Tokens(32))), 16);
  EXPECT_EQ(Look(kv, Tokens(100), kNoLimit, "no key"), 0);
}

TEST(PrefixCache, SharedPagesAreReadByAllAndWrittenByNone) {
  KvManager kv({50, 50}, 64, true);
  RunOne(kv, Tokens(40));
  Sequence a(kv, Tokens(40)), b(kv, Tokens(60));
  ASSERT_EQ(a.cached, 32);
  ASSERT_EQ(b.cached, 32);
  EXPECT_EQ(a.pages.table, b.pages.table);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 2);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).readers(a.pages.table[kGlobal][0]), 2);
  a.Compute();
  b.Compute();
  EXPECT_NE(a.pages.table[kGlobal][2], b.pages.table[kGlobal][2]);
  a.End();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 4);
  b.End();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 0);
}

TEST(PrefixCache, OneFamilyAloneWorks) {
  KvManager global({0, 20}, 0, true);
  RunOne(global, Tokens(64));
  EXPECT_EQ(Look(global, Tokens(100)), 64);
  KvManager sliding({20, 0}, 24, true);  // a window touches three pages
  RunOne(sliding, Tokens(64));
  EXPECT_EQ(Look(sliding, Tokens(100)), 64);
  EXPECT_EQ(RunOne(sliding, Tokens(320, 1000)), 0);  // needs every page
  EXPECT_EQ(Look(sliding, Tokens(100)), 0);
  EXPECT_EQ(Look(sliding, Tokens(330, 1000)), 320);
}

TEST(PrefixCache, EvictsTheLongestUnusedPrefixAndALeafBeforeItsParent) {
  KvManager kv({100, 12}, 64, true);
  RunOne(kv, Tokens(64));
  RunOne(kv, Tokens(64, 1000));
  RunOne(kv, Tokens(64, 2000));
  EXPECT_EQ(Look(kv, Tokens(65)), 64);  // used again
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 12);
  RunOne(kv, Tokens(32, 3000));
  EXPECT_EQ(Look(kv, Tokens(65, 1000)), 32);  // its last two blocks went
  EXPECT_EQ(Look(kv, Tokens(65, 2000)), 64);
  EXPECT_EQ(Look(kv, Tokens(65)), 64);
  EXPECT_EQ(Look(kv, Tokens(33, 3000)), 32);
  EXPECT_EQ(kv.evicted_pages(), 4);  // with their sliding pages
}

TEST(PrefixCache, APrefixWithoutItsWindowGoesAltogether) {
  // Window 33 reads two pages before a page boundary. A long prompt leaves its first pages behind.
  KvManager kv({6, 100}, 33, true);
  Sequence first(kv, Tokens(160));
  first.Compute(16);
  first.End();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 10);
  EXPECT_EQ(kv.pool(KvFamily::kSliding).cached(), 6);  // blocks 4 to 9
  EXPECT_EQ(Look(kv, Tokens(161), 95), 0);             // needs block 3
  EXPECT_EQ(Look(kv, Tokens(161)), 160);
  // Four pages: those that were passed over. The window at the end stays.
  Sequence second(kv, Tokens(50, 1000));
  second.Compute();
  EXPECT_EQ(Look(kv, Tokens(161)), 160);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 10);
  // Two more: its own first page, and one of that window. Nothing of the prefix can be resumed
  // now, so all its pages are free.
  second.tokens = Tokens(96, 1000);
  second.Compute();
  EXPECT_EQ(Look(kv, Tokens(161)), 0);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 0);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).free(), 100 - 6);
}

TEST(PrefixCache, ALongPromptDoesNotPushOutTheWindowsOfOthers) {
  KvManager kv({12, 200}, 33, true);
  RunOne(kv, Tokens(96));
  for (TokenId i = 1; i <= 4; ++i) {  // each leaves a window of two or three pages at its end
    Sequence longer(kv, Tokens(640, 1000 * i));
    longer.Compute(16);
    longer.End();
    EXPECT_EQ(Look(kv, Tokens(100)), 96) << "after " << i;
    EXPECT_EQ(Look(kv, Tokens(650, 1000 * i)), 640);
  }
}

TEST(PrefixCache, WhereTwoHaveBeenTheWindowIsKept) {
  KvManager kv({13, 200}, 33, true);
  const std::vector<TokenId> system_prompt = Tokens(64);
  for (TokenId i = 1; i <= 8; ++i) {
    Sequence chat(kv, Join(system_prompt, Tokens(160, 1000 * i)));
    chat.Compute(16);
    chat.End();
    // The first leaves it behind like any place; the second shows that it is one to resume at.
    if (i >= 2) {
      EXPECT_EQ(Look(kv, Join(system_prompt, Tokens(9, 9))), 64) << "after " << i;
    }
  }
}

TEST(PrefixCache, ATreeLosesOneBranchOnly) {
  KvManager kv({100, 14}, 1024, true);
  RunOne(kv, Join(Tokens(64), Tokens(64, 1000)));
  RunOne(kv, Join(Tokens(64), Tokens(64, 2000)));
  RunOne(kv, Tokens(64, 5000));  // 4 + 4 + 4 + 4 blocks, and 14 pages
  EXPECT_EQ(Look(kv, Join(Tokens(64), Tokens(99, 1000))), 96);
  EXPECT_EQ(Look(kv, Join(Tokens(64), Tokens(99, 2000))), 128);
  EXPECT_EQ(kv.evicted_pages(), 4);
}

TEST(PrefixCache, OfTwoThatComputeTheSameOneCopyStays) {
  KvManager kv({60, 60}, 64, true);
  Sequence a(kv, Tokens(64)), b(kv, Tokens(128));
  ASSERT_EQ(b.cached, 0);  // nothing was published yet
  a.Compute();
  b.Compute();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 12);
  b.End();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 4);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 4);  // what only b had
  a.End();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 8);
  EXPECT_EQ(Look(kv, Tokens(200)), 128);
}

TEST(PrefixCache, ARunningCopyReplacesOneThatNobodyReads) {
  KvManager kv({60, 60}, 64, true);
  Sequence a(kv, Tokens(64)), b(kv, Tokens(65));
  a.Compute();
  a.End();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 4);
  b.Compute();
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).cached(), 0);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).used(), 5);
  EXPECT_EQ(kv.pool(KvFamily::kGlobal).free(), 55);
}

TEST(PrefixCache, WhatARunningSequenceBuiltOnAnEvictedBlockIsFoundAgain) {
  KvManager kv({60, 9}, 64, true);
  Sequence a(kv, Tokens(32)), b(kv, Tokens(100));
  a.Compute();
  b.ComputeTo(64);  // blocks 0 and 1 are a's pages
  a.End();
  // Takes the three free pages and both of a's. b's blocks 2 and 3 have no parents then.
  RunOne(kv, Tokens(80, 1000));
  EXPECT_EQ(Look(kv, Tokens(100)), 0);
  b.ComputeTo(80);
  EXPECT_EQ(Look(kv, Tokens(100)), 80);
  b.End();
  EXPECT_EQ(Look(kv, Tokens(100)), 80);
}

TEST(PrefixCache, ForgetsKeysWithoutBlocks) {
  KvManager kv({4, 4}, 64, true);
  for (int i = 0; i < 50; ++i) RunOne(kv, Tokens(64), "key " + std::to_string(i));
  EXPECT_EQ(Look(kv, Tokens(65), kNoLimit, "key 49"), 64);
  EXPECT_EQ(Look(kv, Tokens(65), kNoLimit, "key 48"), 0);
}

}  // namespace
}  // namespace lapidary
