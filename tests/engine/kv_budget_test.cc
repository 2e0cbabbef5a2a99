#include "engine/kv_budget.h"

#include <gtest/gtest.h>

#include "engine/kv_manager.h"

namespace lapidary {
namespace {

constexpr int64_t kMiB = 1 << 20;

// A model like Gemma 4 31B: 50 sliding layers with 16 kv heads of 256, 10 global with 4 of 512,
// bf16.
KvBudgetInput Large() {
  KvBudgetInput input;
  input.page_bytes = {16 * 50 * 16 * 256 * 2 * 2, 16 * 10 * 4 * 512 * 2 * 2};
  input.window = 1024;
  input.model_context = 262144;
  input.max_running = 64;
  input.max_step_tokens = 512;
  input.kv_bytes = 64 * 1024 * kMiB;
  return input;
}

TEST(KvBudget, TheSlidingPoolHasTheFormulasSizeAndGlobalTheRest) {
  const KvBudgetInput input = Large();
  const absl::StatusOr<KvBudget> budget = PlanKvPools(input);
  ASSERT_TRUE(budget.ok()) << budget.status();
  // 64 windows of 64 + 1 pages, 32 pages of chunks, 63 begun pages.
  EXPECT_EQ(budget->full_sequences, 64);
  EXPECT_EQ(budget->pages[0], 64 * 65 + 32 + 63);
  const int64_t rest = input.kv_bytes - budget->pages[0] * input.page_bytes[0];
  EXPECT_EQ(budget->pages[1], rest / input.page_bytes[1]);
  EXPECT_LE(budget->bytes, input.kv_bytes);
  EXPECT_GT(budget->bytes, input.kv_bytes - input.page_bytes[1]);
  EXPECT_EQ(budget->max_context, std::min(262144, budget->pages[1] * kPageTokens));
}

TEST(KvBudget, ASmallBudgetServesFewerSequencesOfTheExpectedLength) {
  KvBudgetInput input = Large();
  input.max_context = 8192;
  for (const int64_t gib : {2, 4, 8, 16}) {
    input.kv_bytes = gib * 1024 * kMiB;
    const absl::StatusOr<KvBudget> budget = PlanKvPools(input);
    ASSERT_TRUE(budget.ok()) << budget.status();
    SCOPED_TRACE(testing::Message() << gib << " GiB: " << budget->full_sequences);
    const auto pages_for = [&](int32_t n) {
      return std::array<int64_t, 2>{SlidingPagesNeeded(input, n, 8192),
                                    std::max<int64_t>(n * PagesFor(1024), PagesFor(8192))};
    };
    const auto fits = [&](int32_t n) {
      const auto pages = pages_for(n);
      return pages[0] * input.page_bytes[0] + pages[1] * input.page_bytes[1] <= input.kv_bytes;
    };
    EXPECT_TRUE(fits(budget->full_sequences));
    EXPECT_FALSE(budget->full_sequences < 64 && fits(budget->full_sequences + 1));
    EXPECT_GE(budget->pages[1], pages_for(budget->full_sequences)[1]);
    EXPECT_EQ(budget->max_context, 8192);
    EXPECT_LE(budget->bytes, input.kv_bytes);
  }
}

TEST(KvBudget, NeitherPoolIsLargerThanEverNeeded) {
  KvBudgetInput input = Large();
  input.max_context = 64;
  input.max_running = 4;
  const absl::StatusOr<KvBudget> budget = PlanKvPools(input);
  ASSERT_TRUE(budget.ok()) << budget.status();
  EXPECT_EQ(budget->pages, (std::array<int32_t, 2>{4 * 4, 4 * 4}));
}

TEST(KvBudget, SaysWhatOneSequenceNeeds) {
  KvBudgetInput input = Large();
  input.max_context = 4096;
  const int64_t needed = (65 + 32) * input.page_bytes[0] + 256 * input.page_bytes[1];
  input.kv_bytes = needed - 1;
  const absl::Status status = PlanKvPools(input).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find(std::to_string(needed)), std::string::npos) << status;
  EXPECT_NE(status.message().find("4096"), std::string::npos) << status;
  input.kv_bytes = needed;
  ASSERT_TRUE(PlanKvPools(input).ok());
  EXPECT_EQ(PlanKvPools(input)->full_sequences, 1);
}

TEST(KvBudget, AnAutomaticContextShrinksToTheMemory) {
  KvBudgetInput input = Large();
  input.kv_bytes = 600 * kMiB;
  const absl::StatusOr<KvBudget> budget = PlanKvPools(input);
  ASSERT_TRUE(budget.ok()) << budget.status();
  EXPECT_GE(budget->max_context, 256);
  EXPECT_LT(budget->max_context, input.model_context);
  // One sequence of that length fits the pools, window and all.
  const KvManager kv(budget->pages, input.window);
  const std::array<int32_t, 2> need = kv.PagesAtLength(budget->max_context);
  EXPECT_LE(need[0], budget->pages[0]);
  EXPECT_LE(need[1], budget->pages[1]);
  input.kv_bytes = 1 * kMiB;
  EXPECT_EQ(PlanKvPools(input).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(KvBudget, EveryBudgetThatIsAcceptedHoldsItsContext) {
  KvBudgetInput input = Large();
  for (int64_t mib = 16; mib < 4096; mib += 37) {
    for (const int32_t max_context : {0, 100, 1000, 3000}) {
      input.kv_bytes = mib * kMiB;
      input.max_context = max_context;
      const absl::StatusOr<KvBudget> budget = PlanKvPools(input);
      if (!budget.ok()) continue;
      SCOPED_TRACE(testing::Message() << mib << " MiB, context " << max_context);
      EXPECT_LE(budget->bytes, input.kv_bytes);
      const KvManager kv(budget->pages, input.window);
      const std::array<int32_t, 2> need = kv.PagesAtLength(budget->max_context);
      EXPECT_LE(need[0], budget->pages[0]);
      EXPECT_LE(need[1], budget->pages[1]);
      if (max_context > 0) {
        EXPECT_EQ(budget->max_context, max_context);
      }
    }
  }
}

TEST(KvBudget, OneFamilyAlone) {
  KvBudgetInput input = Large();
  input.page_bytes[0] = 0;
  input.window = 0;
  input.max_context = 1024;
  absl::StatusOr<KvBudget> budget = PlanKvPools(input);
  ASSERT_TRUE(budget.ok()) << budget.status();
  EXPECT_EQ(budget->pages, (std::array<int32_t, 2>{0, 64 * 64}));

  input = Large();
  input.page_bytes[1] = 0;
  input.max_running = 8;
  budget = PlanKvPools(input);
  ASSERT_TRUE(budget.ok()) << budget.status();
  EXPECT_EQ(budget->pages, (std::array<int32_t, 2>{8 * 65 + 32 + 7, 0}));
  EXPECT_EQ(budget->max_context, 262144);
}

TEST(KvBudget, WithAPrefixCacheWhatIsLeftKeepsPrefixesWithTheirWindows) {
  KvBudgetInput input = Large();
  const absl::StatusOr<KvBudget> without = PlanKvPools(input);
  input.prefix_cache = true;
  const absl::StatusOr<KvBudget> with = PlanKvPools(input);
  ASSERT_TRUE(without.ok() && with.ok()) << with.status();
  EXPECT_EQ(with->full_sequences, without->full_sequences);
  const int64_t sliding = with->pages[0] - without->pages[0];
  EXPECT_EQ(sliding, with->kept_prefixes * 64);  // 1024 tokens, like the window
  // As many prefixes fit as are said, and not one more unless windows have half of what is left.
  const int64_t running = without->pages[0] * input.page_bytes[0] + 64 * 64 * input.page_bytes[1];
  const int64_t left = input.kv_bytes - running;
  const auto windows = [&](int64_t n) { return n * 64 * input.page_bytes[0]; };
  const auto all = [&](int64_t n) { return windows(n) + n * 64 * input.page_bytes[1]; };
  EXPECT_LE(all(with->kept_prefixes), left);
  EXPECT_LE(windows(with->kept_prefixes), left / 2);
  EXPECT_TRUE(all(with->kept_prefixes + 1) > left || windows(with->kept_prefixes + 1) > left / 2);
  EXPECT_GT(with->kept_prefixes, 0);
  EXPECT_GE(with->pages[1], 64 * 64);
  EXPECT_LE(with->bytes, input.kv_bytes);
  EXPECT_GT(with->bytes, input.kv_bytes - input.page_bytes[1]);
}

TEST(KvBudget, APrefixCacheTakesNothingFromTheRunningOnes) {
  KvBudgetInput input = Large();
  for (int64_t mib = 1000; mib < 90000; mib += 1117) {
    for (const int32_t max_context : {0, 8192}) {
      input.kv_bytes = mib * kMiB;
      input.max_context = max_context;
      input.prefix_cache = false;
      const absl::StatusOr<KvBudget> without = PlanKvPools(input);
      input.prefix_cache = true;
      const absl::StatusOr<KvBudget> with = PlanKvPools(input);
      ASSERT_EQ(with.ok(), without.ok());
      if (!with.ok()) continue;
      SCOPED_TRACE(testing::Message() << mib << " MiB, context " << max_context);
      EXPECT_EQ(with->full_sequences, without->full_sequences);
      EXPECT_GE(with->pages[0], without->pages[0]);
      EXPECT_LE(with->bytes, input.kv_bytes);
      EXPECT_GE(with->pages[1], std::min(without->pages[1], with->full_sequences * 64));
      if (max_context > 0) {
        EXPECT_EQ(with->max_context, max_context);
      }
    }
  }
}

TEST(KvBudget, NonsenseIsRefused) {
  EXPECT_EQ(PlanKvPools(KvBudgetInput{}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lapidary
