// What one rank counts. Names, labels and units stand here and nowhere else.
#pragma once
#include <array>
#include <cstdint>

#include "common/metrics_registry.h"
#include "engine/scheduler.h"
#include "worker/leader.h"

namespace lapidary {

// Fed by the engine thread, read by the metrics server; prometheus-cpp locks inside.
class WorkerMetrics final : public StepObserver {
 public:
  // Registers everything at zero, so that no scrape misses a series.
  WorkerMetrics(MetricsRegistry& registry, int rank);

  void SetMemory(int64_t weights_bytes, int64_t kv_bytes, int64_t workspace_bytes);
  void SetPages(const std::array<int32_t, kKvFamilies>& pages);
  // Leader: queue, running and pages.
  void SetStats(const EngineStats& stats);

  void Planned(double seconds) override;
  void Executed(const StepPlan& plan, const StepResult& result) override;

 private:
  prometheus::Histogram& plan_seconds_;
  prometheus::Histogram& forward_seconds_;
  prometheus::Histogram& sample_seconds_;
  prometheus::Counter& steps_;
  prometheus::Counter& decode_rows_;
  prometheus::Counter& prefill_tokens_;
  prometheus::Histogram& step_rows_;
  prometheus::Histogram& step_tokens_;
  prometheus::Counter& preemptions_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_tokens_;
  std::array<prometheus::Gauge*, kKvFamilies> pages_used_;
  std::array<prometheus::Gauge*, kKvFamilies> pages_total_;
  prometheus::Gauge& weights_bytes_;
  prometheus::Gauge& kv_bytes_;
  prometheus::Gauge& workspace_bytes_;
};

}  // namespace lapidary
