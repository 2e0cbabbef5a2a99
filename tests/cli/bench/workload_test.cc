#include "cli/bench/workload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace lapidary {
namespace {

LengthMix Mix(std::string_view text) { return LengthMix::Parse(text).value(); }

WorkloadOptions Options() {
  WorkloadOptions options;
  options.seed = 7;
  options.prompt_tokens = Mix("lognormal:200,0.8,4,1024");
  options.output_tokens = Mix("64-256");
  options.vocabulary = 262144;
  options.bos = 2;
  return options;
}

TEST(LengthMix, ReadsWhatItWrites) {
  for (const char* text :
       {"1", "128", "64-256", "lognormal:200,0.8,4,1024", "lognormal:1.5,0,1,2"}) {
    EXPECT_EQ(Mix(text).ToString(), text);
  }
  EXPECT_EQ(Mix("7-7").ToString(), "7");
  EXPECT_EQ(Mix("lognormal:100,1").ToString(), "lognormal:100,1,1,1600");
}

TEST(LengthMix, MistakesNameTheText) {
  for (const char* text : {"", "0", "-1", "5-", "-5", "9-3", "a", "1.5", "99999999999999999999",
                           "lognormal:", "lognormal:5", "lognormal:5,1,2", "lognormal:0,1",
                           "lognormal:5,-1", "lognormal:nan,1", "lognormal:5,1,9,3",
                           "lognormal:5,1,0,3", "lognormal:5,1,1,1e30", "normal:5,1"}) {
    const absl::StatusOr<LengthMix> mix = LengthMix::Parse(text);
    ASSERT_FALSE(mix.ok()) << text;
    EXPECT_NE(mix.status().message().find(text), absl::string_view::npos);
  }
}

TEST(LengthMix, UniformReachesEveryLengthEquallyOften) {
  const LengthMix mix = Mix("3-7");
  std::vector<int> seen(8, 0);
  BenchRandom random(1, 2, 3);
  constexpr int kDraws = 50000;
  for (int i = 0; i < kDraws; ++i) ++seen.at(static_cast<size_t>(mix.Draw(random)));
  // Binomial with p = 1/5: deviation sqrt(kDraws * 0.16) = 89; five of them.
  for (size_t length = 3; length <= 7; ++length) EXPECT_NEAR(seen[length], kDraws / 5.0, 450);
}

// The quantiles of a log-normal are median * exp(sigma * z).
TEST(LengthMix, LogNormalHasItsQuantilesAndBounds) {
  const LengthMix mix = Mix("lognormal:200,0.8,4,1024");
  std::vector<int64_t> drawn;
  BenchRandom random(11, 0, 0);
  constexpr int kDraws = 40000;
  for (int i = 0; i < kDraws; ++i) drawn.push_back(mix.Draw(random));
  std::sort(drawn.begin(), drawn.end());
  // A quantile's error is sqrt(q (1 - q) / n) in rank: below 0.0025, so 0.0125 at five deviations.
  for (const auto& [quantile, z] : {std::pair{0.1, -1.2816}, {0.5, 0.0}, {0.9, 1.2816}}) {
    const double expected = 200 * std::exp(0.8 * z);
    const auto rank =
        std::lower_bound(drawn.begin(), drawn.end(), std::llround(expected)) - drawn.begin();
    EXPECT_NEAR(static_cast<double>(rank) / kDraws, quantile, 0.0125 + 0.005) << quantile;
  }
  EXPECT_GE(drawn.front(), 4);
  EXPECT_EQ(drawn.back(), 1024);  // 2 % are above and moved there
}

TEST(Workload, TheSameSeedMakesTheSameRequestsInAnyOrder) {
  const Workload a = Workload::Create(Options()).value();
  const Workload b = Workload::Create(Options()).value();
  WorkloadOptions other = Options();
  other.seed = 8;
  const Workload c = Workload::Create(other).value();
  int differ = 0;
  for (int64_t i = 50; i-- > 0;) b.Make(i);
  for (int64_t i = 0; i < 50; ++i) {
    const BenchRequest x = a.Make(i), y = b.Make(i), z = c.Make(i);
    EXPECT_EQ(x.prompt, y.prompt);
    EXPECT_EQ(x.output_tokens, y.output_tokens);
    EXPECT_EQ(x.sampling_seed, y.sampling_seed);
    differ += x.prompt != z.prompt;
  }
  EXPECT_EQ(differ, 50);
}

TEST(Workload, PromptsStartWithBosAndStayInsideTheMiddleOfTheVocabulary) {
  for (const uint32_t vocabulary : {1u, 2u, 5u, 300u, 262144u}) {
    WorkloadOptions options = Options();
    options.vocabulary = vocabulary;
    options.bos = vocabulary > 2 ? 2 : -1;
    const Workload workload = Workload::Create(options).value();
    for (int64_t i = 0; i < 20; ++i) {
      const BenchRequest request = workload.Make(i);
      ASSERT_GE(request.prompt.size(), 4u);
      for (size_t k = 0; k < request.prompt.size(); ++k) {
        if (k == 0 && options.bos >= 0) {
          EXPECT_EQ(request.prompt[0], 2u);
        } else {
          ASSERT_LT(request.prompt[k], vocabulary);
        }
      }
    }
  }
}

TEST(Workload, LengthsAreThoseOfTheMixPrefixIncluded) {
  WorkloadOptions options = Options();
  options.prompt_tokens = Mix("5");
  options.shared_prefix_tokens = 40;
  options.prefix_groups = 3;
  const Workload workload = Workload::Create(options).value();
  std::set<std::vector<uint32_t>> prefixes, tails;
  for (int64_t i = 0; i < 60; ++i) {
    const BenchRequest request = workload.Make(i);
    ASSERT_EQ(request.prompt.size(), 45u);
    ASSERT_GE(request.output_tokens, 64u);
    ASSERT_LE(request.output_tokens, 256u);
    prefixes.emplace(request.prompt.begin(), request.prompt.begin() + 40);
    tails.emplace(request.prompt.begin() + 40, request.prompt.end());
  }
  EXPECT_EQ(prefixes.size(), 3u);
  EXPECT_EQ(tails.size(), 60u);
  EXPECT_EQ(workload.max_prompt_tokens(), 45);
  EXPECT_EQ(workload.max_total_tokens(), 45 + 256);
}

TEST(Workload, TextGivesSlicesThatStartOver) {
  WorkloadOptions options = Options();
  options.text = {10, 11, 12, 13, 14};
  options.bos = -1;
  options.prompt_tokens = Mix("12");
  const Workload workload = Workload::Create(options).value();
  for (int64_t i = 0; i < 10; ++i) {
    const BenchRequest request = workload.Make(i);
    ASSERT_EQ(request.prompt.size(), 12u);
    for (size_t k = 1; k < 12; ++k) {
      EXPECT_EQ(request.prompt[k], request.prompt[k - 1] == 14 ? 10 : request.prompt[k - 1] + 1);
    }
  }
}

TEST(Workload, ArrivalsHaveTheMeanAndTheSpreadOfAPoissonProcess) {
  WorkloadOptions options = Options();
  options.rate = 20;
  const Workload workload = Workload::Create(options).value();
  constexpr int kArrivals = 20000;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < kArrivals; ++i) {
    const double gap = workload.SecondsBefore(i);
    ASSERT_GE(gap, 0);
    ASSERT_EQ(gap, workload.SecondsBefore(i));
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / kArrivals;
  // An exponential's deviation is its mean; that of the mean of n is mean / sqrt(n): five of them.
  EXPECT_NEAR(mean, 0.05, 0.05 * 5 / std::sqrt(kArrivals));
  // Its variance has deviation mean^2 * sqrt(8 / n).
  EXPECT_NEAR(squares / kArrivals - mean * mean, 0.0025, 0.0025 * 5 * std::sqrt(8.0 / kArrivals));
}

TEST(Workload, WhatCanNotBeIsRefused) {
  WorkloadOptions options = Options();
  options.vocabulary = 0;
  EXPECT_FALSE(Workload::Create(options).ok());
  options.vocabulary = 2;  // the first token is 2
  EXPECT_FALSE(Workload::Create(options).ok());
  options = Options();
  options.prefix_groups = 0;
  EXPECT_FALSE(Workload::Create(options).ok());
}

}  // namespace
}  // namespace lapidary
