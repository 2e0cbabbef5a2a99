#include "kernels/sampling/penalties.h"

#include <gtest/gtest.h>

namespace lapidary {
namespace {

struct Case {
  const char* name;
  float logit;
  Penalties penalties;
  bool in_prompt;
  int32_t output_count;
  float expected;
};

class PenaltiesTest : public testing::TestWithParam<Case> {};

TEST_P(PenaltiesTest, Table) {
  const Case& c = GetParam();
  EXPECT_EQ(ApplyPenalties(c.logit, c.penalties, c.in_prompt, c.output_count), c.expected);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, PenaltiesTest,
    testing::Values(Case{"none", 3.0f, {}, true, 7, 3.0f},
                    Case{"unseen", 3.0f, {2.0f, 1.0f, 1.0f}, false, 0, 3.0f},
                    Case{"repetition_divides_positive", 3.0f, {2.0f, 0, 0}, true, 0, 1.5f},
                    Case{"repetition_multiplies_negative", -3.0f, {2.0f, 0, 0}, true, 0, -6.0f},
                    Case{"repetition_of_zero", 0.0f, {2.0f, 0, 0}, true, 0, 0.0f},
                    Case{"repetition_counts_output", 3.0f, {2.0f, 0, 0}, false, 5, 1.5f},
                    Case{"repetition_only_once", 3.0f, {2.0f, 0, 0}, true, 5, 1.5f},
                    Case{"below_one_encourages", 3.0f, {0.5f, 0, 0}, true, 0, 6.0f},
                    Case{"presence_once", 3.0f, {1.0f, 0.5f, 0}, false, 4, 2.5f},
                    Case{"presence_not_for_the_prompt", 3.0f, {1.0f, 0.5f, 0.5f}, true, 0, 3.0f},
                    Case{"frequency_each_time", 3.0f, {1.0f, 0, 0.25f}, false, 4, 2.0f},
                    Case{"negative_frequency_encourages", 3.0f, {1.0f, 0, -0.25f}, false, 4, 4.0f},
                    Case{"repetition_before_the_others", 4.0f, {2.0f, 0.5f, 0.25f}, true, 2, 1.0f}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lapidary
