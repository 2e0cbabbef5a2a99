// What one rank counts. Names, labels and units stand here and nowhere else; docs/metrics.md lists
// them.
#pragma once
#include <array>
#include <cstdint>
#include <memory>

#include "common/metrics_registry.h"
#include "engine/scheduler.h"
#include "worker/leader.h"

namespace lapidary {

// What the steps took since the rank began, by part.
struct StepSeconds {
  double plan = 0, forward = 0, sample = 0;
};

// What only the leader knows: the engine's queue, pages and counts. Fed with whole EngineStats.
class EngineMetrics {
 public:
  EngineMetrics(prometheus::Registry& registry, const prometheus::Labels& labels);
  void SetPages(const std::array<int32_t, kKvFamilies>& pages);
  void Set(const EngineStats& stats);

 private:
  using Gauge = prometheus::Gauge*;
  using Counter = prometheus::Counter*;

  std::array<int32_t, kKvFamilies> pages_ = {0, 0};
  EngineStats counted_;  // what the counters hold already
  Gauge waiting_, running_, paused_, waiting_tokens_;
  std::array<Gauge, kPriorities> waiting_by_class_, running_by_class_;
  std::array<Gauge, kKvFamilies> pages_used_, pages_cached_, pages_total_, kv_usage_;
  Counter steps_, decode_rows_, prefill_tokens_, preemptions_, recomputed_tokens_;
  Counter prefix_lookup_tokens_, prefix_hit_tokens_, prefix_evicted_pages_;
};

// Fed by the engine thread, read by the metrics server; prometheus-cpp locks inside.
class WorkerMetrics final : public StepObserver {
 public:
  // Registers everything at zero, so that no scrape misses a series; the engine's on rank 0 alone.
  WorkerMetrics(MetricsRegistry& registry, int rank);
  WorkerMetrics(const WorkerMetrics&) = delete;
  WorkerMetrics& operator=(const WorkerMetrics&) = delete;

  void SetMemory(int64_t weights_bytes, int64_t kv_bytes, int64_t workspace_bytes);
  void SetPages(const std::array<int32_t, kKvFamilies>& pages);
  void SetStats(const EngineStats& stats);

  void Planned(double seconds) override;
  void Executed(const StepPlan& plan, const StepResult& result) override;
  const StepSeconds& step_seconds() const { return step_seconds_; }

 private:
  WorkerMetrics(prometheus::Registry& registry, int rank, const prometheus::Labels& labels);

  std::unique_ptr<EngineMetrics> engine_;  // leader
  StepSeconds step_seconds_;
  prometheus::Histogram& plan_seconds_;
  prometheus::Histogram& forward_seconds_;
  prometheus::Histogram& sample_seconds_;
  prometheus::Histogram& gap_seconds_;
  prometheus::Histogram& step_rows_;
  prometheus::Histogram& step_tokens_;
  prometheus::Gauge& weights_bytes_;
  prometheus::Gauge& kv_bytes_;
  prometheus::Gauge& workspace_bytes_;
};

}  // namespace lapidary
