#include "cli/bench/tally.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace lapidary {
namespace {

BenchTime At(double seconds) {
  return BenchTime() + std::chrono::duration_cast<BenchTime::duration>(
                           std::chrono::duration<double>(1000 + seconds));
}

// The dumb twin: walks along the polyline through (i / (n - 1), value i) until it reaches p.
double SlowPercentile(std::vector<float> values, double p) {
  std::sort(values.begin(), values.end());
  if (values.size() == 1) return values[0];
  const double step = 100.0 / static_cast<double>(values.size() - 1);
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const double left = step * static_cast<double>(i), right = step * static_cast<double>(i + 1);
    if (p >= left && p <= right) {
      return values[i] + (p - left) / (right - left) * (double{values[i + 1]} - values[i]);
    }
  }
  return values.back();
}

TEST(Percentile, AgreesWithItsTwin) {
  BenchRandom random(3, 0, 0);
  for (const size_t n : {1u, 2u, 3u, 7u, 100u, 101u, 1000u}) {
    std::vector<float> values;
    for (size_t i = 0; i < n; ++i) values.push_back(static_cast<float>(100 * random.Uniform()));
    std::vector<float> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    for (const double p : {0.0, 1.0, 33.3, 50.0, 90.0, 99.0, 99.9, 100.0}) {
      EXPECT_NEAR(Percentile(sorted, p), SlowPercentile(values, p), 1e-9) << n << " " << p;
    }
  }
}

TEST(Percentile, KnownValues) {
  EXPECT_EQ(Percentile({1, 2, 3, 4, 5}, 50), 3);
  EXPECT_EQ(Percentile({1, 2, 3, 4}, 50), 2.5);
  EXPECT_NEAR(Percentile({0, 10}, 99), 9.9, 1e-12);
}

TEST(Summarise, OfNothingIsNothing) {
  EXPECT_EQ(Summarise({}).count, 0);
  const Distribution d = Summarise({3, 1, 2});
  EXPECT_EQ(d.count, 3);
  EXPECT_EQ(d.mean, 2);
  EXPECT_EQ(d.min, 1);
  EXPECT_EQ(d.max, 3);
}

BenchAnswer Answer() {
  BenchAnswer answer;
  answer.started = At(0);
  answer.finished = At(3.5);
  answer.arrivals = {{At(1), 1}, {At(1.5), 1}, {At(3), 3}};
  answer.finish_reason = "length";
  answer.prompt_tokens = 4;
  answer.completion_tokens = 5;
  return answer;
}

TEST(Tally, TokensOfOneMessageShareTheGapBeforeIt) {
  Tally tally;
  tally.Add(Answer(), {});
  EXPECT_EQ(tally.first_token, std::vector<float>{1});
  EXPECT_EQ(tally.token_gap, (std::vector<float>{0.5, 0.5, 0.5, 0.5}));
  EXPECT_EQ(tally.message_gap, (std::vector<float>{0.5, 1.5}));
  EXPECT_EQ(tally.latency, std::vector<float>{3.5});
  EXPECT_EQ(tally.per_token, std::vector<float>{0.5});
  EXPECT_EQ(tally.output_tokens, 5);
  EXPECT_EQ(tally.messages, 3);
  EXPECT_EQ(tally.prompt_tokens, 4);
  EXPECT_DOUBLE_EQ(tally.Seconds(), 3.5);
}

TEST(Tally, AFailedAnswerLeavesOnlyItsKind) {
  Tally tally;
  tally.Add(Answer(), {.kind = "too few tokens", .detail = "the first"});
  tally.Add(Answer(), {.kind = "too few tokens", .detail = "the second"});
  EXPECT_EQ(tally.good, 0);
  EXPECT_EQ(tally.failed, 2);
  EXPECT_EQ(tally.errors.at("too few tokens"), 2);
  EXPECT_EQ(tally.examples.at("too few tokens"), "the first");
  EXPECT_EQ(tally.output_tokens, 0);
  EXPECT_TRUE(tally.latency.empty() && tally.first_token.empty() && tally.token_gap.empty());
}

}  // namespace
}  // namespace lapidary
