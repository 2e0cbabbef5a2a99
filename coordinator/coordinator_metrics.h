// Every metric of a coordinator: names, labels, units. Logic calls what happened.
//
// lapidary_* is authoritative. The vllm:* block repeats what routers, autoscalers and dashboards
// already read, one series per name; a flag turns it off. No label holds a request id or a prompt.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics_registry.h"
#include "coordinator/group_state.h"

namespace lapidary {

// How a request ended: the label `finish` of lapidary_requests_total.
enum class Outcome {
  kStop,
  kLength,
  kToolCalls,
  kCancelled,   // the client went away
  kDeadline,    // its deadline passed
  kSlowReader,  // it did not read
  kLost,        // the group was lost, or drained away
  kError,       // the engine refused or failed it
};
inline constexpr int kOutcomes = 8;
const char* OutcomeName(Outcome outcome);

// Why a request was not taken: the label `reason` of lapidary_admission_rejections_total.
enum class Rejection { kBadRequest, kUnknownModel, kDuplicateId, kNoGroup, kDraining, kQueueFull };
inline constexpr int kRejections = 6;

struct MetricsOptions {
  std::string model_name;
  int tensor_parallel = 1;
  bool compat = true;  // the vllm:* block
};

// Thread-safe.
class CoordinatorMetrics {
 public:
  CoordinatorMetrics(MetricsRegistry& metrics, const MetricsOptions& options);

  // Seconds; NaN is ignored.
  void QueueTime(double seconds);
  void FirstToken(double seconds);
  // `tokens` tokens came `seconds` after the ones before them. Equal waits in a row, which the
  // streams of one step have, are counted together; Update() shows the last of them.
  void InterToken(double seconds, int tokens) ABSL_LOCKS_EXCLUDED(waits_mu_);
  void PromptTokens(uint32_t count);
  void GeneratedTokens(uint32_t count);
  void Finished(Outcome outcome, double seconds, uint32_t prompt_tokens, uint32_t generated_tokens);
  void Rejected(Rejection reason);
  // A request was paused for its slow reader, or is no longer.
  void Paused(bool paused);
  // Gauges from the group's state; called before a scrape.
  void Update(const GroupState& state, int open_streams) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Histograms = std::vector<prometheus::Histogram*>;  // ours, then the compat one
  using Counters = std::vector<prometheus::Counter*>;
  using Gauges = std::vector<prometheus::Gauge*>;

  void UpdateCacheInfo(const GroupState& state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ObserveWaits() ABSL_EXCLUSIVE_LOCKS_REQUIRED(waits_mu_);

  Histograms time_to_first_token_, inter_token_, request_time_, queue_time_;
  Histograms prompt_length_, generation_length_;
  Counters prompt_tokens_, generation_tokens_, preemptions_;
  std::array<prometheus::Counter*, kOutcomes> requests_{};
  std::array<prometheus::Counter*, kOutcomes>
      compat_success_{};  // null where vLLM has no such label
  std::array<prometheus::Counter*, kRejections> rejections_{};
  Gauges running_, waiting_;
  prometheus::Gauge* compat_kv_usage_ = nullptr;
  prometheus::Gauge *waiting_tokens_, *paused_, *sliding_usage_, *global_usage_, *open_streams_,
      *draining_, *group_ready_, *epoch_;
  prometheus::Counter *steps_, *decode_rows_, *prefill_tokens_;
  prometheus::Family<prometheus::Gauge>* cache_info_family_ = nullptr;
  std::vector<prometheus::Gauge*> worker_up_;  // one per rank

  absl::Mutex waits_mu_;
  double wait_seconds_ ABSL_GUARDED_BY(waits_mu_) = 0;  // of the tokens not observed yet
  int64_t waited_tokens_ ABSL_GUARDED_BY(waits_mu_) = 0;

  absl::Mutex mu_;
  GroupState last_ ABSL_GUARDED_BY(mu_);  // counters add what came since
  prometheus::Gauge* cache_info_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace lapidary
