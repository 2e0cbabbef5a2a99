#include "coordinator/coordinator_metrics.h"

#include <sstream>
#include <string>

#include "absl/strings/numbers.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

// The value after `sample` on a page of metrics; -1 when it is not there.
double Value(const std::string& page, const std::string& sample) {
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    double value = 0;
    if (line.compare(0, sample.size() + 1, sample + " ") == 0 &&
        absl::SimpleAtod(line.substr(sample.size() + 1), &value)) {
      return value;
    }
  }
  return -1;
}

TEST(CoordinatorMetricsTest, WaitsOfAStepAreCountedTogetherAndEachOnce) {
  MetricsRegistry registry;
  CoordinatorMetrics metrics(registry, MetricsOptions{.model_name = "m"});
  for (int stream = 0; stream < 256; ++stream) metrics.InterToken(0.03, 1);
  metrics.InterToken(0.5, 2);  // two tokens in half a second
  metrics.InterToken(0.03, 1);
  metrics.Update(GroupState{}, 0);
  for (const std::string series :
       {"lapidary_inter_token_latency_seconds%{model_name=\"m\"",
        "vllm:inter_token_latency_seconds%{engine=\"0\",model_name=\"m\""}) {
    const size_t name_end = series.find('%');
    const std::string name = series.substr(0, name_end), labels = series.substr(name_end + 1);
    const std::string page = registry.Text();
    EXPECT_EQ(Value(page, name + "_count" + labels + "}"), 259) << page;
    EXPECT_NEAR(Value(page, name + "_sum" + labels + "}"), 257 * 0.03 + 2 * 0.25, 1e-9);
    EXPECT_EQ(Value(page, name + "_bucket" + labels + ",le=\"0.008\"}"), 0);
    EXPECT_EQ(Value(page, name + "_bucket" + labels + ",le=\"+Inf\"}"), 259);
  }
  metrics.Update(GroupState{}, 0);
  EXPECT_EQ(Value(registry.Text(), "lapidary_inter_token_latency_seconds_count{model_name=\"m\"}"),
            259);
}

}  // namespace
}  // namespace lapidary
