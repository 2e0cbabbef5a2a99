// Every metric of a coordinator: names, labels, units. Logic calls what happened.
//
// lapidary_* is authoritative. The vllm:* block repeats what routers, autoscalers and dashboards
// already read, one series per name; a flag turns it off. No label holds a request id or a prompt.
#pragma once
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics_registry.h"
#include "coordinator/group_state.h"
#include "coordinator/metric_builder.h"

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

// Of a request's first choice; seconds since its arrival.
struct ChoiceTimes {
  double queue = 0;  // its wait in the engine
  double first_token = 0, last_token = 0;
  uint32_t tokens = 0;         // at least 1
  uint32_t cached_tokens = 0;  // of the prompt
};

// A request that is over.
struct EndedRequest {
  Outcome outcome = Outcome::kStop;
  double seconds = 0;
  uint32_t prompt_tokens = 0;
  uint32_t generated_tokens = 0;  // all choices
  uint32_t longest_choice = 0;    // tokens
  uint32_t choices = 1;
  uint32_t max_tokens = 0;                  // of each choice
  std::optional<ChoiceTimes> first_choice;  // once it has a token
};

struct MetricsOptions {
  std::string model_name;
  int tensor_parallel = 1;
  bool compat = true;  // the vllm:* block
};

// Thread-safe.
class CoordinatorMetrics {
 public:
  CoordinatorMetrics(MetricsRegistry& metrics, const MetricsOptions& options);

  // Seconds; what is no number is ignored.
  void QueueTime(double seconds);
  void FirstToken(double seconds);
  // `tokens` tokens came `seconds` after the ones before them. Equal waits in a row, which the
  // streams of one step have, are counted together; Update() shows the last of them.
  void InterToken(double seconds, int tokens) ABSL_LOCKS_EXCLUDED(waits_mu_);
  void PromptTokens(uint32_t count);
  void GeneratedTokens(uint32_t count);
  void CachedPromptTokens(uint32_t count);
  void Finished(const EndedRequest& request);
  // The leader's steps since it last told.
  void Stepped(const StepWork& work);
  void Rejected(Rejection reason);
  // A request was paused for its slow reader, or is no longer.
  void Paused(bool paused);
  // Gauges from the group's state; called before a scrape.
  void Update(const GroupState& state, int open_streams) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void UpdateCacheInfo(const GroupState& state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ObserveWaits() ABSL_EXCLUSIVE_LOCKS_REQUIRED(waits_mu_);

  Histograms time_to_first_token_, inter_token_, request_time_, queue_time_;
  Histograms prefill_time_, decode_time_, inference_time_, output_token_time_;
  Histograms prompt_length_, generation_length_, longest_choice_, computed_prompt_;
  Histograms choices_, max_tokens_;
  Histograms step_tokens_, step_seconds_;  // the latter by part
  Counters prompt_tokens_, cached_prompt_tokens_, generation_tokens_;
  Counters preemptions_, recomputed_tokens_, steps_, decode_rows_, prefill_tokens_;
  Counters prefix_lookup_tokens_, prefix_hit_tokens_, prefix_evicted_pages_;
  Counters requests_, rejections_;                                // by outcome, by reason
  std::array<prometheus::Counter*, kOutcomes> compat_success_{};  // null: vLLM has no such
  Gauges running_, waiting_, running_by_class_, waiting_by_class_;
  Gauges kv_usage_, pages_used_, pages_cached_, pages_total_;  // by family
  prometheus::Gauge* compat_kv_usage_ = nullptr;
  prometheus::Gauge *waiting_tokens_, *paused_, *open_streams_, *draining_, *group_ready_, *epoch_;
  prometheus::Family<prometheus::Gauge>* cache_info_family_ = nullptr;
  Gauges worker_up_;  // one per rank

  absl::Mutex waits_mu_;
  double wait_seconds_ ABSL_GUARDED_BY(waits_mu_) = 0;  // of the tokens not observed yet
  int64_t waited_tokens_ ABSL_GUARDED_BY(waits_mu_) = 0;

  absl::Mutex mu_;
  GroupState last_ ABSL_GUARDED_BY(mu_);  // counters add what came since
  prometheus::Gauge* cache_info_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace lapidary
