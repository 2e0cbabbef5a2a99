#include "worker/worker_metrics.h"

#include <cmath>
#include <string>

namespace lapidary {
namespace {

using prometheus::Labels;

constexpr const char* kFamilyNames[kKvFamilies] = {"sliding", "global"};
constexpr const char* kClassNames[kPriorities] = {"interactive", "batch"};

Labels With(Labels labels, const char* key, const char* value) {
  labels[key] = value;
  return labels;
}

prometheus::Counter& AddCounter(prometheus::Registry& registry, const char* name, const char* help,
                                const Labels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
}

prometheus::Gauge& AddGauge(prometheus::Registry& registry, const char* name, const char* help,
                            const Labels& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
}

template <size_t N>
std::array<prometheus::Gauge*, N> AddGauges(prometheus::Registry& registry, const char* name,
                                            const char* help, const Labels& labels, const char* key,
                                            const char* const (&values)[N]) {
  std::array<prometheus::Gauge*, N> out;
  for (size_t i = 0; i < N; ++i) {
    out[i] = &AddGauge(registry, name, help, With(labels, key, values[i]));
  }
  return out;
}

prometheus::Histogram& AddHistogram(prometheus::Registry& registry, const char* name,
                                    const char* help, const Labels& labels,
                                    const prometheus::Histogram::BucketBoundaries& bounds) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels, bounds);
}

const prometheus::Histogram::BucketBoundaries kStepRows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};

constexpr char kStepSecondsName[] = "lapidary_step_seconds";
constexpr char kStepSecondsHelp[] =
    "Time of a step by part: plan (and telling the other ranks), forward, sample.";
constexpr char kMemoryName[] = "lapidary_memory_bytes";
constexpr char kMemoryHelp[] = "Memory of this rank by use: weights, kv, workspace.";

// The engine's totals become counters by what they grew.
void Grow(prometheus::Counter* counter, uint64_t now, uint64_t* counted) {
  if (now <= *counted) return;
  counter->Increment(static_cast<double>(now - *counted));
  *counted = now;
}

void Add(double seconds, double* sum) {
  if (std::isfinite(seconds)) *sum += seconds;
}

}  // namespace

EngineMetrics::EngineMetrics(prometheus::Registry& r, const Labels& labels)
    : waiting_(
          &AddGauge(r, "lapidary_requests_waiting", "Sequences in the engine's queue.", labels)),
      running_(&AddGauge(r, "lapidary_requests_running", "Sequences being computed.", labels)),
      paused_(&AddGauge(r, "lapidary_requests_paused",
                        "Requests paused because their client does not read.", labels)),
      waiting_tokens_(&AddGauge(r, "lapidary_queued_prompt_tokens",
                                "Tokens of the sequences in the engine's queue.", labels)),
      waiting_by_class_(AddGauges(r, "lapidary_requests_waiting_by_class",
                                  "Sequences in the engine's queue, by class of work.", labels,
                                  "class", kClassNames)),
      running_by_class_(AddGauges(r, "lapidary_requests_running_by_class",
                                  "Sequences being computed, by class of work.", labels, "class",
                                  kClassNames)),
      pages_used_(AddGauges(r, "lapidary_kv_pages_used",
                            "KV pages of live requests, by family; the same on every rank.", labels,
                            "family", kFamilyNames)),
      pages_cached_(AddGauges(r, "lapidary_kv_pages_cached",
                              "KV pages of nobody, kept for their prefix; free when needed.",
                              labels, "family", kFamilyNames)),
      pages_total_(AddGauges(r, "lapidary_kv_pages", "KV pages there are, by family.", labels,
                             "family", kFamilyNames)),
      kv_usage_(AddGauges(r, "lapidary_kv_usage_ratio", "Share of the KV pages in use, by family.",
                          labels, "family", kFamilyNames)),
      steps_(&AddCounter(r, "lapidary_steps_total", "Model steps.", labels)),
      decode_rows_(&AddCounter(r, "lapidary_decode_rows_total",
                               "Rows that decoded one token, over all steps; over "
                               "lapidary_steps_total: the mean decode batch.",
                               labels)),
      prefill_tokens_(&AddCounter(r, "lapidary_prefill_tokens_total",
                                  "Prompt tokens computed, over all steps.", labels)),
      preemptions_(&AddCounter(r, "lapidary_preemptions_total",
                               "Sequences that gave up their pages and were computed again.",
                               labels)),
      recomputed_tokens_(&AddCounter(r, "lapidary_recomputed_tokens_total",
                                     "Tokens computed again after a preemption or a pause.",
                                     labels)),
      prefix_lookup_tokens_(&AddCounter(r, "lapidary_prefix_cache_queries_total",
                                        "Prompt tokens looked up in the prefix cache.", labels)),
      prefix_hit_tokens_(&AddCounter(r, "lapidary_prefix_cache_hits_total",
                                     "Prompt tokens found in the prefix cache.", labels)),
      prefix_evicted_pages_(&AddCounter(r, "lapidary_prefix_cache_evicted_pages_total",
                                        "Pages of the prefix cache given to live requests.",
                                        labels)) {}

void EngineMetrics::SetPages(const std::array<int32_t, kKvFamilies>& pages) {
  pages_ = pages;
  for (int f = 0; f < kKvFamilies; ++f) pages_total_[f]->Set(pages[f]);
}

void EngineMetrics::Set(const EngineStats& stats) {
  waiting_->Set(stats.waiting);
  running_->Set(stats.running);
  paused_->Set(stats.paused);
  waiting_tokens_->Set(static_cast<double>(stats.waiting_tokens));
  waiting_by_class_[0]->Set(stats.waiting - stats.waiting_batch);
  waiting_by_class_[1]->Set(stats.waiting_batch);
  running_by_class_[0]->Set(stats.running - stats.running_batch);
  running_by_class_[1]->Set(stats.running_batch);
  for (int f = 0; f < kKvFamilies; ++f) {
    pages_used_[f]->Set(stats.pages_used[f]);
    pages_cached_[f]->Set(stats.pages_cached[f]);
    kv_usage_[f]->Set(pages_[f] > 0 ? static_cast<double>(stats.pages_used[f]) / pages_[f] : 0);
  }
  Grow(steps_, stats.steps, &counted_.steps);
  Grow(decode_rows_, stats.decode_rows, &counted_.decode_rows);
  Grow(prefill_tokens_, stats.prefill_tokens, &counted_.prefill_tokens);
  Grow(preemptions_, stats.preemptions, &counted_.preemptions);
  Grow(recomputed_tokens_, stats.recomputed_tokens, &counted_.recomputed_tokens);
  Grow(prefix_lookup_tokens_, stats.prefix_lookup_tokens, &counted_.prefix_lookup_tokens);
  Grow(prefix_hit_tokens_, stats.prefix_hit_tokens, &counted_.prefix_hit_tokens);
  Grow(prefix_evicted_pages_, stats.prefix_evicted_pages, &counted_.prefix_evicted_pages);
}

WorkerMetrics::WorkerMetrics(MetricsRegistry& registry, int rank)
    : WorkerMetrics(registry.registry(), rank, {{"rank", std::to_string(rank)}}) {}

WorkerMetrics::WorkerMetrics(prometheus::Registry& r, int rank, const Labels& labels)
    : engine_(rank == 0 ? std::make_unique<EngineMetrics>(r, labels) : nullptr),
      plan_seconds_(AddHistogram(r, kStepSecondsName, kStepSecondsHelp,
                                 With(labels, "part", "plan"), StepSecondsBounds())),
      forward_seconds_(AddHistogram(r, kStepSecondsName, kStepSecondsHelp,
                                    With(labels, "part", "forward"), StepSecondsBounds())),
      sample_seconds_(AddHistogram(r, kStepSecondsName, kStepSecondsHelp,
                                   With(labels, "part", "sample"), StepSecondsBounds())),
      gap_seconds_(AddHistogram(r, "lapidary_step_gap_seconds",
                                "Time of the device between a step and the next; on the leader "
                                "where there was something to compute, elsewhere always.",
                                labels, StepSecondsBounds())),
      step_rows_(AddHistogram(r, "lapidary_step_rows", "Sequences in a step.", labels, kStepRows)),
      step_tokens_(AddHistogram(r, "lapidary_step_tokens", "Tokens computed in a step.", labels,
                                StepTokensBounds())),
      weights_bytes_(AddGauge(r, kMemoryName, kMemoryHelp, With(labels, "use", "weights"))),
      kv_bytes_(AddGauge(r, kMemoryName, kMemoryHelp, With(labels, "use", "kv"))),
      workspace_bytes_(AddGauge(r, kMemoryName, kMemoryHelp, With(labels, "use", "workspace"))) {}

void WorkerMetrics::SetMemory(int64_t weights_bytes, int64_t kv_bytes, int64_t workspace_bytes) {
  weights_bytes_.Set(static_cast<double>(weights_bytes));
  kv_bytes_.Set(static_cast<double>(kv_bytes));
  workspace_bytes_.Set(static_cast<double>(workspace_bytes));
}

void WorkerMetrics::SetPages(const std::array<int32_t, kKvFamilies>& pages) {
  if (engine_ != nullptr) engine_->SetPages(pages);
}

void WorkerMetrics::SetStats(const EngineStats& stats) {
  if (engine_ != nullptr) engine_->Set(stats);
}

void WorkerMetrics::Planned(double seconds) {
  Observe(plan_seconds_, seconds);
  Add(seconds, &step_seconds_.plan);
}

void WorkerMetrics::Executed(const StepPlan& plan, const StepResult& result) {
  Observe(forward_seconds_, result.forward_seconds);
  Observe(sample_seconds_, result.sample_seconds);
  if (result.idle_seconds > 0) Observe(gap_seconds_, result.idle_seconds);
  Add(result.forward_seconds, &step_seconds_.forward);
  Add(result.sample_seconds, &step_seconds_.sample);
  int64_t tokens = 0;
  for (const PlanRow& row : plan.rows) tokens += row.len;
  Observe(step_rows_, static_cast<double>(plan.rows.size()));
  Observe(step_tokens_, static_cast<double>(tokens));
}

}  // namespace lapidary
