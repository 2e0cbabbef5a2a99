#include "worker/expert_choice.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lapidary {
namespace {

TEST(ExpertChoice, TheLargestInAscendingIdWithSoftmaxOverThemTimesTheFactor) {
  const float logits[] = {0.5f, 2.0f, -1.0f, 1.0f};
  const float factor[] = {1.0f, 3.0f, 5.0f, 7.0f};
  ExpertChoice chosen[2];
  ChooseExperts(logits, 4, factor, 2, chosen);
  EXPECT_EQ(chosen[0].expert, 1);
  EXPECT_EQ(chosen[1].expert, 3);
  const double share = 1 / (1 + std::exp(-1.0));
  EXPECT_FLOAT_EQ(chosen[0].weight, static_cast<float>(3 * share));
  EXPECT_FLOAT_EQ(chosen[1].weight, static_cast<float>(7 * (1 - share)));
}

TEST(ExpertChoice, TheLowerIdWinsATie) {
  const float logits[] = {1.0f, 4.0f, 1.0f, 1.0f};
  const float factor[] = {1.0f, 1.0f, 1.0f, 1.0f};
  ExpertChoice chosen[3];
  ChooseExperts(logits, 4, factor, 3, chosen);
  EXPECT_EQ(chosen[0].expert, 0);
  EXPECT_EQ(chosen[1].expert, 1);
  EXPECT_EQ(chosen[2].expert, 2);
}

TEST(ExpertChoice, TokensOfAnExpertAscendAndReplaceWhatWasThere) {
  const ExpertChoice chosen[] = {{0, 0.1f}, {2, 0.9f}, {1, 0.4f}, {3, 0.6f}, {1, 0.2f}, {2, 0.8f}};
  std::vector<ExpertToken> members(5);
  TokensOfExpert(chosen, 3, 2, 2, members);
  ASSERT_EQ(members.size(), 2u);
  EXPECT_EQ(members[0].token, 0);
  EXPECT_EQ(members[0].weight, 0.9f);
  EXPECT_EQ(members[1].token, 2);
  EXPECT_EQ(members[1].weight, 0.8f);
  TokensOfExpert(chosen, 3, 2, 7, members);
  EXPECT_TRUE(members.empty());
}

}  // namespace
}  // namespace lapidary
