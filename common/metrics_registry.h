// The metrics of one process: a prometheus-cpp registry, the process_* set it lacks, the text page,
// and the histogram bounds everybody shares.
#pragma once
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace lapidary {

// Seconds to the first token, between tokens, and of whole requests and queueing. vLLM's bounds, so
// that its dashboards work, with finer ones below 50 ms between tokens: small models decode there.
const prometheus::Histogram::BucketBoundaries& TimeToFirstTokenBounds();
const prometheus::Histogram::BucketBoundaries& InterTokenBounds();
const prometheus::Histogram::BucketBoundaries& RequestTimeBounds();
// Tokens of a prompt or an answer: 1, 2, 5, 10 ... 500,000.
const prometheus::Histogram::BucketBoundaries& TokenCountBounds();

// Seconds of a part of a step: from a tenth of a millisecond (planning) to ten seconds (a long
// prefill on a slow CPU). Tokens computed in a step: vLLM's bounds and 2 and 4.
const prometheus::Histogram::BucketBoundaries& StepSecondsBounds();
const prometheus::Histogram::BucketBoundaries& StepTokensBounds();

// Observes unless the value is NaN or infinite, which would spoil the sum for ever.
void Observe(prometheus::Histogram& histogram, double value);

// Thread-safe.
class MetricsRegistry {
 public:
  MetricsRegistry();

  // For the *_metrics files: build families once, keep references to the metrics.
  prometheus::Registry& registry() { return *registry_; }

  // The page of /metrics in the text exposition format 0.0.4, process_* included.
  std::string Text();

 private:
  void UpdateProcessMetrics();

  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Counter& cpu_seconds_;
  prometheus::Gauge& resident_bytes_;
  prometheus::Gauge& virtual_bytes_;
  prometheus::Gauge& open_fds_;
  prometheus::Gauge& max_fds_;
  prometheus::Gauge& threads_;
  prometheus::Gauge& start_time_;
  absl::Mutex mu_;
  double counted_cpu_seconds_ ABSL_GUARDED_BY(mu_) = 0;
};

// Content type of Text().
inline constexpr char kMetricsContentType[] = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace lapidary
