#include "common/metrics_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace lapidary {
namespace {

using ::testing::HasSubstr;

TEST(MetricsRegistryTest, ThePageHasProcessMetricsAndOurs) {
  MetricsRegistry metrics;
  prometheus::BuildCounter()
      .Name("things_total")
      .Help("Things.")
      .Register(metrics.registry())
      .Add({{"kind", "a"}})
      .Increment(3);
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("# TYPE things_total counter"));
  EXPECT_THAT(page, HasSubstr("things_total{kind=\"a\"} 3"));
  EXPECT_THAT(page, HasSubstr("# TYPE process_cpu_seconds_total counter"));
  for (const char* name :
       {"process_resident_memory_bytes ", "process_virtual_memory_bytes ", "process_open_fds ",
        "process_max_fds ", "process_threads ", "process_start_time_seconds "}) {
    const size_t at = page.find(std::string("\n") + name);
    ASSERT_NE(at, std::string::npos) << name;
    EXPECT_GT(std::stod(page.substr(at + 1 + std::string(name).size())), 0) << name;
  }
}

TEST(MetricsRegistryTest, NanDoesNotSpoilAHistogram) {
  MetricsRegistry metrics;
  auto& histogram = prometheus::BuildHistogram()
                        .Name("seconds")
                        .Help("Seconds.")
                        .Register(metrics.registry())
                        .Add({}, RequestTimeBounds());
  Observe(histogram, std::nan(""));
  Observe(histogram, HUGE_VAL);
  Observe(histogram, 1.0);
  EXPECT_THAT(metrics.Text(), HasSubstr("seconds_sum 1"));
  EXPECT_THAT(metrics.Text(), HasSubstr("seconds_count 1"));
}

TEST(MetricsRegistryTest, BoundsAscend) {
  for (const auto* bounds : {&TimeToFirstTokenBounds(), &InterTokenBounds(), &RequestTimeBounds(),
                             &TokenCountBounds(), &StepSecondsBounds(), &StepTokensBounds()}) {
    EXPECT_TRUE(std::is_sorted(bounds->begin(), bounds->end()));
    EXPECT_EQ(std::adjacent_find(bounds->begin(), bounds->end()), bounds->end());
  }
}

}  // namespace
}  // namespace lapidary
