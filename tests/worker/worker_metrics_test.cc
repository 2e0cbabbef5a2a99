#include "worker/worker_metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

using testing::HasSubstr;

TEST(WorkerMetrics, EverySeriesIsThereFromTheStart) {
  MetricsRegistry registry;
  WorkerMetrics metrics(registry, 3);
  const std::string text = registry.Text();
  for (const char* series :
       {"lapidary_steps_total{rank=\"3\"} 0", "lapidary_decode_rows_total{rank=\"3\"} 0",
        "lapidary_prefill_tokens_total{rank=\"3\"} 0", "lapidary_preemptions_total{rank=\"3\"} 0",
        "lapidary_requests_waiting{rank=\"3\"} 0", "lapidary_requests_running{rank=\"3\"} 0",
        "lapidary_kv_pages_used{family=\"global\",rank=\"3\"} 0",
        "lapidary_step_seconds_count{part=\"forward\",rank=\"3\"} 0"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, CountsWhatAStepHeld) {
  MetricsRegistry registry;
  WorkerMetrics metrics(registry, 0);
  StepPlan plan;
  PlanRow decode;
  decode.start = 9;
  decode.len = 1;
  decode.samples = true;
  PlanRow chunk;
  chunk.len = 30;
  PlanRow first;  // a prompt of one token decodes nothing yet
  first.len = 1;
  first.samples = true;
  plan.rows = {decode, decode, chunk, first};
  StepResult result;
  result.forward_seconds = 0.25;
  result.sample_seconds = 0.5;
  metrics.Planned(0.125);
  metrics.Executed(plan, result);
  EngineStats stats;
  stats.waiting = 4;
  stats.pages_used = {5, 6};
  stats.preemptions = 2;
  metrics.SetStats(stats);
  metrics.SetStats(stats);  // a total, not a difference
  metrics.SetPages({50, 60});
  metrics.SetMemory(1, 2, 3);
  const std::string text = registry.Text();
  for (const char* series :
       {"lapidary_steps_total{rank=\"0\"} 1", "lapidary_decode_rows_total{rank=\"0\"} 2",
        "lapidary_prefill_tokens_total{rank=\"0\"} 31", "lapidary_requests_waiting{rank=\"0\"} 4",
        "lapidary_preemptions_total{rank=\"0\"} 2", "lapidary_step_rows_sum{rank=\"0\"} 4",
        "lapidary_step_tokens_sum{rank=\"0\"} 33",
        "lapidary_step_seconds_sum{part=\"plan\",rank=\"0\"} 0.125",
        "lapidary_step_seconds_sum{part=\"forward\",rank=\"0\"} 0.25",
        "lapidary_step_seconds_sum{part=\"sample\",rank=\"0\"} 0.5",
        "lapidary_kv_pages_used{family=\"sliding\",rank=\"0\"} 5",
        "lapidary_kv_pages{family=\"global\",rank=\"0\"} 60",
        "lapidary_memory_bytes{rank=\"0\",use=\"workspace\"} 3"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

}  // namespace
}  // namespace lapidary
