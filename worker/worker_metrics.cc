#include "worker/worker_metrics.h"

#include <map>
#include <string>

namespace lapidary {
namespace {

using Labels = std::map<std::string, std::string>;

Labels With(int rank, Labels labels = {}) {
  labels["rank"] = std::to_string(rank);
  return labels;
}

prometheus::Counter& AddCounter(MetricsRegistry& registry, const char* name, const char* help,
                                const Labels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry.registry()).Add(labels);
}

prometheus::Gauge& AddGauge(MetricsRegistry& registry, const char* name, const char* help,
                            const Labels& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry.registry()).Add(labels);
}

prometheus::Histogram& AddHistogram(MetricsRegistry& registry, const char* name, const char* help,
                                    const Labels& labels,
                                    const prometheus::Histogram::BucketBoundaries& bounds) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(registry.registry())
      .Add(labels, bounds);
}

// From a tenth of a millisecond (planning) to ten seconds (a long prefill on a slow CPU).
const prometheus::Histogram::BucketBoundaries kStepSeconds = {
    .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10};
const prometheus::Histogram::BucketBoundaries kStepRows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
const prometheus::Histogram::BucketBoundaries kStepTokens = {1,   2,   4,   8,    16,   32,  64,
                                                             128, 256, 512, 1024, 2048, 4096};

constexpr char kStepSecondsName[] = "lapidary_step_seconds";
constexpr char kStepSecondsHelp[] =
    "Time of a step by part: plan (and telling the other ranks), forward, sample.";
constexpr char kPagesUsedName[] = "lapidary_kv_pages_used";
constexpr char kPagesUsedHelp[] = "KV pages in use, by family. The leader counts for all ranks.";
constexpr char kPagesName[] = "lapidary_kv_pages";
constexpr char kPagesHelp[] = "KV pages there are, by family.";
constexpr char kMemoryName[] = "lapidary_memory_bytes";
constexpr char kMemoryHelp[] = "Memory of this rank by use: weights, kv, workspace.";

}  // namespace

WorkerMetrics::WorkerMetrics(MetricsRegistry& registry, int rank)
    : plan_seconds_(AddHistogram(registry, kStepSecondsName, kStepSecondsHelp,
                                 With(rank, {{"part", "plan"}}), kStepSeconds)),
      forward_seconds_(AddHistogram(registry, kStepSecondsName, kStepSecondsHelp,
                                    With(rank, {{"part", "forward"}}), kStepSeconds)),
      sample_seconds_(AddHistogram(registry, kStepSecondsName, kStepSecondsHelp,
                                   With(rank, {{"part", "sample"}}), kStepSeconds)),
      steps_(AddCounter(registry, "lapidary_steps_total", "Steps computed.", With(rank))),
      decode_rows_(AddCounter(registry, "lapidary_decode_rows_total",
                              "Rows of one token that sampled the next; over lapidary_steps_total: "
                              "the mean decode batch.",
                              With(rank))),
      prefill_tokens_(AddCounter(registry, "lapidary_prefill_tokens_total",
                                 "Tokens computed in other rows.", With(rank))),
      step_rows_(AddHistogram(registry, "lapidary_step_rows", "Sequences in a step.", With(rank),
                              kStepRows)),
      step_tokens_(AddHistogram(registry, "lapidary_step_tokens", "Tokens computed in a step.",
                                With(rank), kStepTokens)),
      preemptions_(AddCounter(registry, "lapidary_preemptions_total",
                              "Sequences put back into the queue for want of KV pages.",
                              With(rank))),
      waiting_(AddGauge(registry, "lapidary_requests_waiting", "Sequences in the engine's queue.",
                        With(rank))),
      running_(
          AddGauge(registry, "lapidary_requests_running", "Sequences being computed.", With(rank))),
      waiting_tokens_(AddGauge(registry, "lapidary_waiting_tokens",
                               "Tokens of the sequences in the engine's queue.", With(rank))),
      pages_used_{
          &AddGauge(registry, kPagesUsedName, kPagesUsedHelp, With(rank, {{"family", "sliding"}})),
          &AddGauge(registry, kPagesUsedName, kPagesUsedHelp, With(rank, {{"family", "global"}}))},
      pages_total_{&AddGauge(registry, kPagesName, kPagesHelp, With(rank, {{"family", "sliding"}})),
                   &AddGauge(registry, kPagesName, kPagesHelp, With(rank, {{"family", "global"}}))},
      weights_bytes_(
          AddGauge(registry, kMemoryName, kMemoryHelp, With(rank, {{"use", "weights"}}))),
      kv_bytes_(AddGauge(registry, kMemoryName, kMemoryHelp, With(rank, {{"use", "kv"}}))),
      workspace_bytes_(
          AddGauge(registry, kMemoryName, kMemoryHelp, With(rank, {{"use", "workspace"}}))) {}

void WorkerMetrics::SetMemory(int64_t weights_bytes, int64_t kv_bytes, int64_t workspace_bytes) {
  weights_bytes_.Set(static_cast<double>(weights_bytes));
  kv_bytes_.Set(static_cast<double>(kv_bytes));
  workspace_bytes_.Set(static_cast<double>(workspace_bytes));
}

void WorkerMetrics::SetPages(const std::array<int32_t, kKvFamilies>& pages) {
  for (int f = 0; f < kKvFamilies; ++f) pages_total_[f]->Set(pages[f]);
}

void WorkerMetrics::SetStats(const EngineStats& stats) {
  waiting_.Set(stats.waiting);
  running_.Set(stats.running);
  waiting_tokens_.Set(static_cast<double>(stats.waiting_tokens));
  for (int f = 0; f < kKvFamilies; ++f) pages_used_[f]->Set(stats.pages_used[f]);
  const double fresh = static_cast<double>(stats.preemptions) - preemptions_.Value();
  if (fresh > 0) preemptions_.Increment(fresh);
}

void WorkerMetrics::Planned(double seconds) { Observe(plan_seconds_, seconds); }

void WorkerMetrics::Executed(const StepPlan& plan, const StepResult& result) {
  Observe(forward_seconds_, result.forward_seconds);
  Observe(sample_seconds_, result.sample_seconds);
  int64_t decode = 0, prefill = 0;
  for (const PlanRow& row : plan.rows) {
    if (row.len == 1 && row.samples && row.start > 0) {
      ++decode;
    } else {
      prefill += row.len;
    }
  }
  steps_.Increment();
  decode_rows_.Increment(static_cast<double>(decode));
  prefill_tokens_.Increment(static_cast<double>(prefill));
  Observe(step_rows_, static_cast<double>(plan.rows.size()));
  Observe(step_tokens_, static_cast<double>(decode + prefill));
}

}  // namespace lapidary
