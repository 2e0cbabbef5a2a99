#include "engine/step_cost.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lapidary {
namespace {

// A device of known prices.
struct Prices {
  double step, row, token;
  double Seconds(int rows, int tokens) const { return step + row * rows + token * tokens; }
};

TEST(StepCost, LearnsThePricesOfALinearDevice) {
  const Prices prices = {2e-3, 1e-4, 5e-5};
  StepCost cost;
  for (int i = 0; i < 100; ++i) {
    cost.Observe(1 + i * 7 % 40, 0, prices.Seconds(1 + i * 7 % 40, 0));
    cost.Observe(i % 20, 64 + i, prices.Seconds(i % 20, 64 + i));
  }
  for (int rows : {1, 16, 64}) {
    for (int tokens : {0, 16, 300}) {
      // The slope is shrunk by kSlopeDoubt times mean^2 / variance, here about 3, and this error is
      // in the price of a token too, which was learnt beside 10 rows: within 1 %.
      EXPECT_NEAR(cost.Predict(rows, tokens) / prices.Seconds(rows, tokens), 1, 0.01)
          << rows << " rows, " << tokens << " tokens";
    }
    const int32_t tokens = cost.PromptTokensWithin(20e-3, rows);
    EXPECT_LE(cost.Predict(rows, tokens), 20e-3);
    EXPECT_GT(cost.Predict(rows, tokens + 1), 20e-3);
  }
}

TEST(StepCost, FollowsADrift) {
  StepCost cost;
  const Prices before = {1e-3, 1e-4, 1e-5}, after = {1e-3, 1e-4, 4e-5};
  for (int i = 0; i < 500; ++i) cost.Observe(8, 0, before.Seconds(8, 0));
  for (int i = 0; i < 500; ++i) cost.Observe(8, 100, before.Seconds(8, 100));
  EXPECT_NEAR(cost.Predict(8, 100), before.Seconds(8, 100), 1e-9);
  // After 32 steps of the new price it makes 1 - (31/32)^32 = 64 % of what is believed.
  for (int i = 0; i < 32; ++i) cost.Observe(8, 100, after.Seconds(8, 100));
  const double moved = std::pow(31.0 / 32, 32);
  const double expected = moved * before.Seconds(8, 100) + (1 - moved) * after.Seconds(8, 100);
  EXPECT_NEAR(cost.Predict(8, 100), expected, 1e-9);
}

TEST(StepCost, DecodingForLongDoesNotForgetThePriceOfAPrompt) {
  const Prices prices = {1e-3, 1e-4, 2e-5};
  StepCost cost;
  for (int i = 0; i < 50; ++i) cost.Observe(4, 0, prices.Seconds(4, 0));
  cost.Observe(4, 200, prices.Seconds(4, 200));
  const double before = cost.Predict(4, 100);
  for (int i = 0; i < 100000; ++i) cost.Observe(4, 0, prices.Seconds(4, 0));
  EXPECT_NEAR(cost.Predict(4, 100), before, 1e-9);
}

TEST(StepCost, KnowsNothingAtFirst) {
  StepCost cost;
  EXPECT_EQ(cost.Predict(10, 10), 0);
  EXPECT_EQ(cost.tokens_per_second(), 0);
  EXPECT_EQ(cost.PromptTokensWithin(0.1, 1), std::numeric_limits<int32_t>::max());
  cost.Observe(0, 100, 0.2);  // without decode steps all is the prompt's
  EXPECT_EQ(cost.PromptTokensWithin(0.1, 5), 50);
  EXPECT_EQ(cost.tokens_per_second(), 500);
}

TEST(StepCost, TimesThatCanNotBeAreIgnored) {
  StepCost cost;
  cost.Observe(1, 0, 0);
  cost.Observe(1, 0, -1);
  cost.Observe(1, 0, std::nan(""));
  cost.Observe(0, 0, 1);
  EXPECT_EQ(cost.Predict(10, 10), 0);
  // A step with prompts that took less than its rows alone: tokens are free, not paid for.
  cost.Observe(10, 0, 0.010);
  cost.Observe(10, 50, 0.005);
  EXPECT_EQ(cost.Predict(10, 50), 0.010);
  EXPECT_EQ(cost.PromptTokensWithin(0.009, 10), 0);  // the rows alone take longer
}

TEST(StepCost, MoreRowsAreNeverCheaper) {
  StepCost cost;
  for (int i = 0; i < 100; ++i) cost.Observe(1 + i % 10, 0, 0.020 - 0.001 * (i % 10));
  EXPECT_GE(cost.Predict(20, 0), cost.Predict(1, 0));
  EXPECT_GE(cost.Predict(0, 0), 0);
}

}  // namespace
}  // namespace lapidary
