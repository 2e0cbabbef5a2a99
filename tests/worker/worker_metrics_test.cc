#include "worker/worker_metrics.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(WorkerMetrics, EverySeriesIsThereFromTheStart) {
  MetricsRegistry registry;
  WorkerMetrics metrics(registry, 0);
  const std::string text = registry.Text();
  for (const char* series :
       {"lapidary_steps_total{rank=\"0\"} 0", "lapidary_decode_rows_total{rank=\"0\"} 0",
        "lapidary_prefill_tokens_total{rank=\"0\"} 0", "lapidary_preemptions_total{rank=\"0\"} 0",
        "lapidary_requests_waiting{rank=\"0\"} 0", "lapidary_requests_running{rank=\"0\"} 0",
        "lapidary_requests_paused{rank=\"0\"} 0",
        "lapidary_requests_waiting_by_class{class=\"batch\",rank=\"0\"} 0",
        "lapidary_kv_pages_cached{family=\"global\",rank=\"0\"} 0",
        "lapidary_prefix_cache_hits_total{rank=\"0\"} 0",
        "lapidary_step_seconds_count{part=\"forward\",rank=\"0\"} 0"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, OtherRanksHaveNoEngine) {
  MetricsRegistry registry;
  WorkerMetrics metrics(registry, 3);
  metrics.SetStats(EngineStats{});
  metrics.SetPages({1, 2});
  const std::string text = registry.Text();
  EXPECT_THAT(text, HasSubstr("lapidary_step_tokens_count{rank=\"3\"} 0"));
  EXPECT_THAT(text, HasSubstr("lapidary_memory_bytes{rank=\"3\",use=\"kv\"} 0"));
  EXPECT_THAT(text, Not(HasSubstr("lapidary_steps_total")));
  EXPECT_THAT(text, Not(HasSubstr("lapidary_requests")));
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
  plan.rows = {decode, decode, chunk};
  StepResult result;
  result.forward_seconds = 0.25;
  result.sample_seconds = 0.5;
  result.idle_seconds = 0.0625;
  metrics.Planned(0.125);
  metrics.Executed(plan, result);
  EXPECT_EQ(metrics.step_seconds().plan, 0.125);
  EXPECT_EQ(metrics.step_seconds().forward, 0.25);
  EXPECT_EQ(metrics.step_seconds().sample, 0.5);
  metrics.SetMemory(1, 2, 3);
  const std::string text = registry.Text();
  for (const char* series :
       {"lapidary_step_rows_sum{rank=\"0\"} 3", "lapidary_step_tokens_sum{rank=\"0\"} 32",
        "lapidary_step_seconds_sum{part=\"plan\",rank=\"0\"} 0.125",
        "lapidary_step_seconds_sum{part=\"forward\",rank=\"0\"} 0.25",
        "lapidary_step_seconds_sum{part=\"sample\",rank=\"0\"} 0.5",
        "lapidary_step_gap_seconds_sum{rank=\"0\"} 0.0625",
        "lapidary_memory_bytes{rank=\"0\",use=\"workspace\"} 3"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, TheEnginesNumbersAreItsOwn) {
  MetricsRegistry registry;
  WorkerMetrics metrics(registry, 0);
  EngineStats stats;
  stats.waiting = 4;
  stats.waiting_batch = 3;
  stats.running = 7;
  stats.running_batch = 5;
  stats.paused = 2;
  stats.waiting_tokens = 900;
  stats.pages_used = {5, 6};
  stats.pages_cached = {7, 8};
  stats.preemptions = 2;
  stats.recomputed_tokens = 40;
  stats.prefix_lookup_tokens = 100;
  stats.prefix_hit_tokens = 64;
  stats.prefix_evicted_pages = 9;
  stats.steps = 10;
  stats.decode_rows = 20;
  stats.prefill_tokens = 300;
  metrics.SetPages({50, 60});
  metrics.SetStats(stats);
  metrics.SetStats(stats);  // totals, not differences
  stats.decode_rows = 21;
  metrics.SetStats(stats);
  const std::string text = registry.Text();
  for (const char* series :
       {"lapidary_requests_waiting{rank=\"0\"} 4",
        "lapidary_requests_running{rank=\"0\"} 7",
        "lapidary_requests_waiting_by_class{class=\"interactive\",rank=\"0\"} 1",
        "lapidary_requests_waiting_by_class{class=\"batch\",rank=\"0\"} 3",
        "lapidary_requests_running_by_class{class=\"interactive\",rank=\"0\"} 2",
        "lapidary_requests_running_by_class{class=\"batch\",rank=\"0\"} 5",
        "lapidary_requests_paused{rank=\"0\"} 2",
        "lapidary_queued_prompt_tokens{rank=\"0\"} 900",
        "lapidary_kv_pages_used{family=\"sliding\",rank=\"0\"} 5",
        "lapidary_kv_pages_cached{family=\"global\",rank=\"0\"} 8",
        "lapidary_kv_pages{family=\"global\",rank=\"0\"} 60",
        "lapidary_kv_usage_ratio{family=\"sliding\",rank=\"0\"} 0.1",
        "lapidary_preemptions_total{rank=\"0\"} 2",
        "lapidary_recomputed_tokens_total{rank=\"0\"} 40",
        "lapidary_prefix_cache_queries_total{rank=\"0\"} 100",
        "lapidary_prefix_cache_hits_total{rank=\"0\"} 64",
        "lapidary_prefix_cache_evicted_pages_total{rank=\"0\"} 9",
        "lapidary_steps_total{rank=\"0\"} 10",
        "lapidary_decode_rows_total{rank=\"0\"} 21",
        "lapidary_prefill_tokens_total{rank=\"0\"} 300"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, NanSpoilsNothing) {
  MetricsRegistry registry;
  WorkerMetrics metrics(registry, 0);
  StepResult result;
  result.forward_seconds = result.sample_seconds = result.idle_seconds = std::nan("");
  metrics.Planned(std::nan(""));
  metrics.Executed(StepPlan{}, result);
  EXPECT_EQ(metrics.step_seconds().plan, 0);
  EXPECT_EQ(metrics.step_seconds().forward, 0);
  const std::string text = registry.Text();
  EXPECT_THAT(text, Not(HasSubstr("Nan")));
  EXPECT_THAT(text, HasSubstr("lapidary_step_seconds_sum{part=\"forward\",rank=\"0\"} 0"));
}

}  // namespace
}  // namespace lapidary
