#include "coordinator/coordinator_metrics.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/metric_builder.h"

namespace lapidary {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;

constexpr int kPageTokens = 16;
constexpr uint64_t kMaxStepsAtOnce = 1000;  // of one message, in the histograms
constexpr const char* kRejectionNames[kRejections] = {
    "bad_request", "unknown_model", "duplicate_id", "no_group", "draining", "queue_full"};
constexpr const char* kFamilyNames[2] = {"sliding", "global"};
constexpr const char* kClassNames[2] = {"interactive", "batch"};
constexpr const char* kPartNames[3] = {"plan", "forward", "sample"};
// Independent answers of one request.
const prometheus::Histogram::BucketBoundaries kChoiceBounds = {1, 2, 5, 10, 20, 50};

// What vLLM calls an end; null: it does not count it.
const char* CompatReason(Outcome outcome) {
  switch (outcome) {
    case Outcome::kStop:
      return "stop";
    case Outcome::kLength:
      return "length";
    case Outcome::kCancelled:
      return "abort";
    case Outcome::kError:
      return "error";
    case Outcome::kToolCalls:
    case Outcome::kDeadline:
    case Outcome::kSlowReader:
    case Outcome::kLost:
      return nullptr;
  }
  return nullptr;
}

double Share(int64_t used, int64_t total) {
  return total > 0 ? static_cast<double>(used) / static_cast<double>(total) : 0;
}

// What a counter of the engine's grew by; a new epoch starts from zero.
double Growth(uint64_t now, uint64_t before, bool same_epoch) {
  if (!same_epoch) return static_cast<double>(now);
  return now > before ? static_cast<double>(now - before) : 0;
}

}  // namespace

const char* OutcomeName(Outcome outcome) {
  switch (outcome) {
    case Outcome::kStop:
      return "stop";
    case Outcome::kLength:
      return "length";
    case Outcome::kToolCalls:
      return "tool_calls";
    case Outcome::kCancelled:
      return "cancelled";
    case Outcome::kDeadline:
      return "deadline";
    case Outcome::kSlowReader:
      return "slow_reader";
    case Outcome::kLost:
      return "lost";
    case Outcome::kError:
      return "error";
  }
  return "error";
}

CoordinatorMetrics::CoordinatorMetrics(MetricsRegistry& metrics, const MetricsOptions& options) {
  prometheus::Registry& registry = metrics.registry();
  const MetricBuilder build(registry, options.model_name, options.compat);
  time_to_first_token_ =
      build.Histogram("lapidary_time_to_first_token_seconds", "vllm:time_to_first_token_seconds",
                      "From the request's arrival to its first token.", TimeToFirstTokenBounds());
  inter_token_ =
      build.Histogram("lapidary_inter_token_latency_seconds", "vllm:inter_token_latency_seconds",
                      "Between two tokens of a choice.", InterTokenBounds());
  request_time_ = build.Histogram("lapidary_request_seconds", "vllm:e2e_request_latency_seconds",
                                  "From a request's arrival to its end.", RequestTimeBounds());
  queue_time_ = build.Histogram("lapidary_queue_seconds", "vllm:request_queue_time_seconds",
                                "A request's wait in the engine's queue (of its first choice).",
                                RequestTimeBounds());
  prefill_time_ =
      build.Histogram("lapidary_prefill_seconds", "vllm:request_prefill_time_seconds",
                      "From the end of a request's wait to the first token of its first choice.",
                      RequestTimeBounds());
  decode_time_ = build.Histogram("lapidary_decode_seconds", "vllm:request_decode_time_seconds",
                                 "From the first to the last token of a request's first choice.",
                                 RequestTimeBounds());
  inference_time_ = build.Histogram(
      "lapidary_inference_seconds", "vllm:request_inference_time_seconds",
      "Prefill and decode of a request's first choice together.", RequestTimeBounds());
  output_token_time_ = build.Histogram(
      "lapidary_output_token_seconds", "vllm:request_time_per_output_token_seconds",
      "Mean time between two tokens of a request's first choice.", InterTokenBounds());
  prompt_length_ = build.Histogram("lapidary_request_prompt_tokens", "vllm:request_prompt_tokens",
                                   "Prompt tokens of a request.", TokenCountBounds());
  generation_length_ =
      build.Histogram("lapidary_request_generation_tokens", "vllm:request_generation_tokens",
                      "Generated tokens of a request, all choices.", TokenCountBounds());
  longest_choice_ = build.Histogram(
      "lapidary_request_max_num_generation_tokens", "vllm:request_max_num_generation_tokens",
      "Generated tokens of a request's longest choice.", TokenCountBounds());
  computed_prompt_ = build.Histogram("lapidary_request_prefill_computed_tokens",
                                     "vllm:request_prefill_kv_computed_tokens",
                                     "Prompt tokens of a request that no cache had (of its first "
                                     "choice).",
                                     TokenCountBounds());
  choices_ = build.Histogram("lapidary_request_params_n", "vllm:request_params_n",
                             "Choices a request asked for.", kChoiceBounds);
  max_tokens_ =
      build.Histogram("lapidary_request_params_max_tokens", "vllm:request_params_max_tokens",
                      "Most tokens a choice of the request could have.", TokenCountBounds());
  step_tokens_ = build.Histogram("lapidary_step_tokens", "vllm:iteration_tokens_total",
                                 "Tokens computed in a step.", StepTokensBounds());
  step_seconds_ = build.HistogramsBy(
      "part", kPartNames, "lapidary_step_seconds",
      "Time of a step by part: plan (and telling the other ranks), forward, sample.",
      StepSecondsBounds());
  prompt_tokens_ = build.Counter("lapidary_prompt_tokens_total", "vllm:prompt_tokens_total",
                                 "Prompt tokens of requests that began to answer.");
  generation_tokens_ = build.Counter("lapidary_generation_tokens_total",
                                     "vllm:generation_tokens_total", "Tokens generated.");
  cached_prompt_tokens_ =
      build.Counter("lapidary_prompt_tokens_cached_total", "vllm:prompt_tokens_cached_total",
                    "Prompt tokens of answered requests that were in the prefix cache.");
  prefix_lookup_tokens_ =
      build.Counter("lapidary_prefix_cache_queries_total", "vllm:prefix_cache_queries_total",
                    "Prompt tokens looked up in the prefix cache.");
  prefix_hit_tokens_ =
      build.Counter("lapidary_prefix_cache_hits_total", "vllm:prefix_cache_hits_total",
                    "Prompt tokens found in the prefix cache.");
  prefix_evicted_pages_ = build.Counter("lapidary_prefix_cache_evicted_pages_total", nullptr,
                                        "Pages of the prefix cache given to live requests.");
  recomputed_tokens_ = build.Counter("lapidary_recomputed_tokens_total", nullptr,
                                     "Tokens computed again after a preemption or a pause.");
  preemptions_ = build.Counter("lapidary_preemptions_total", "vllm:num_preemptions_total",
                               "Sequences that gave up their pages and were computed again.");
  steps_ = build.Counter("lapidary_steps_total", nullptr, "Model steps.");
  decode_rows_ = build.Counter("lapidary_decode_rows_total", nullptr,
                               "Rows that decoded one token, over all steps; over "
                               "lapidary_steps_total: the mean decode batch.");
  prefill_tokens_ = build.Counter("lapidary_prefill_tokens_total", nullptr,
                                  "Prompt tokens computed, over all steps.");
  running_ = build.Gauge("lapidary_requests_running", "vllm:num_requests_running",
                         "Sequences being computed.");
  waiting_ = build.Gauge("lapidary_requests_waiting", "vllm:num_requests_waiting",
                         "Sequences in the engine's queue.");
  running_by_class_ = build.GaugesBy("class", kClassNames, "lapidary_requests_running_by_class",
                                     "Sequences being computed, by class of work.");
  waiting_by_class_ = build.GaugesBy("class", kClassNames, "lapidary_requests_waiting_by_class",
                                     "Sequences in the engine's queue, by class of work.");
  waiting_tokens_ = build.Gauge("lapidary_queued_prompt_tokens", nullptr,
                                "Tokens of the sequences in the engine's queue.")[0];
  paused_ = build.Gauge("lapidary_requests_paused", nullptr,
                        "Requests paused because their client does not read.")[0];
  open_streams_ = build.Gauge("lapidary_streams_open", nullptr, "Generate calls in progress.")[0];
  draining_ = build.Gauge("lapidary_draining", nullptr, "1 while draining.")[0];
  group_ready_ = build.Gauge("lapidary_group_ready", nullptr, "1 while the group serves.")[0];
  epoch_ = build.Gauge("lapidary_epoch", nullptr, "Epoch of the group.")[0];

  kv_usage_ = build.GaugesBy("family", kFamilyNames, "lapidary_kv_usage_ratio",
                             "Share of the KV pages in use, by family.");
  pages_used_ = build.GaugesBy("family", kFamilyNames, "lapidary_kv_pages_used",
                               "KV pages of live requests, by family; the same on every rank.");
  pages_cached_ = build.GaugesBy("family", kFamilyNames, "lapidary_kv_pages_cached",
                                 "KV pages of nobody, kept for their prefix; free when needed.");
  pages_total_ =
      build.GaugesBy("family", kFamilyNames, "lapidary_kv_pages", "KV pages there are, by family.");
  std::vector<std::string> ranks;
  for (int rank = 0; rank < options.tensor_parallel; ++rank) ranks.push_back(absl::StrCat(rank));
  worker_up_ =
      build.GaugesBy("rank", ranks, "lapidary_worker_up", "1 while the rank is connected.");
  std::vector<std::string> outcomes;
  for (int i = 0; i < kOutcomes; ++i) outcomes.push_back(OutcomeName(static_cast<Outcome>(i)));
  requests_ = build.CountersBy("finish", outcomes, "lapidary_requests_total",
                               "Requests ended, by how they ended.");
  rejections_ = build.CountersBy("reason", kRejectionNames, "lapidary_admission_rejections_total",
                                 "Requests not taken, by reason.");
  BuildGauge()
      .Name("lapidary_build_info")
      .Help("1; the labels say what runs.")
      .Register(registry)
      .Add({{"version", LAPIDARY_VERSION}, {"process", "coordinator"}})
      .Set(1);
  if (!options.compat) return;

  compat_kv_usage_ = &BuildGauge()
                          .Name("vllm:kv_cache_usage_perc")
                          .Help("Share of the fuller KV family's pages in use, 0 to 1.")
                          .Register(registry)
                          .Add(build.Theirs("engine", "0"));
  auto& success = BuildCounter()
                      .Name("vllm:request_success_total")
                      .Help("Requests ended, by how they ended.")
                      .Register(registry);
  for (int i = 0; i < kOutcomes; ++i) {
    const char* reason = CompatReason(static_cast<Outcome>(i));
    if (reason != nullptr) {
      compat_success_[i] = &success.Add(build.Theirs("finished_reason", reason));
    }
  }
  // A tool call is a stop to vLLM.
  compat_success_[static_cast<int>(Outcome::kToolCalls)] =
      compat_success_[static_cast<int>(Outcome::kStop)];
  cache_info_family_ = &BuildGauge()
                            .Name("vllm:cache_config_info")
                            .Help("1; page size and number as labels.")
                            .Register(registry);
  absl::MutexLock lock(&mu_);
  UpdateCacheInfo(last_);
}

void CoordinatorMetrics::QueueTime(double seconds) { ObserveAll(queue_time_, seconds); }
void CoordinatorMetrics::FirstToken(double seconds) { ObserveAll(time_to_first_token_, seconds); }
void CoordinatorMetrics::InterToken(double seconds, int tokens) {
  const double each = seconds / tokens;
  if (!std::isfinite(each)) return;
  absl::MutexLock lock(&waits_mu_);
  if (each != wait_seconds_) ObserveWaits();
  wait_seconds_ = each;
  waited_tokens_ += tokens;
}

void CoordinatorMetrics::ObserveWaits() {
  if (waited_tokens_ == 0) return;
  const prometheus::Histogram::BucketBoundaries& bounds = InterTokenBounds();
  const auto count = static_cast<double>(std::exchange(waited_tokens_, 0));
  std::vector<double> buckets(bounds.size() + 1);
  buckets[static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), wait_seconds_) -
                              bounds.begin())] = count;
  for (prometheus::Histogram* histogram : inter_token_) {
    histogram->ObserveMultiple(buckets, count * wait_seconds_);
  }
}
void CoordinatorMetrics::PromptTokens(uint32_t count) { AddAll(prompt_tokens_, count); }
void CoordinatorMetrics::GeneratedTokens(uint32_t count) { AddAll(generation_tokens_, count); }

void CoordinatorMetrics::CachedPromptTokens(uint32_t count) {
  AddAll(cached_prompt_tokens_, count);
}

void CoordinatorMetrics::Finished(const EndedRequest& request) {
  const int index = static_cast<int>(request.outcome);
  requests_[index]->Increment();
  if (compat_success_[index] != nullptr) compat_success_[index]->Increment();
  ObserveAll(request_time_, request.seconds);
  ObserveAll(prompt_length_, request.prompt_tokens);
  ObserveAll(generation_length_, request.generated_tokens);
  ObserveAll(longest_choice_, request.longest_choice);
  ObserveAll(choices_, request.choices);
  ObserveAll(max_tokens_, request.max_tokens);
  if (!request.first_choice) return;
  const ChoiceTimes& times = *request.first_choice;
  const double prefill = std::max(times.first_token - times.queue, 0.0);
  const double decode = times.last_token - times.first_token;
  ObserveAll(computed_prompt_, request.prompt_tokens - times.cached_tokens);
  ObserveAll(prefill_time_, prefill);
  ObserveAll(decode_time_, decode);
  ObserveAll(inference_time_, prefill + decode);
  if (times.tokens > 1) ObserveAll(output_token_time_, decode / (times.tokens - 1));
}

// One message a step, unless the leader was too quick for the stream: then their mean, as often.
void CoordinatorMetrics::Stepped(const StepWork& work) {
  const auto steps = static_cast<double>(work.steps);
  for (uint64_t i = 0; i < std::min(work.steps, kMaxStepsAtOnce); ++i) {
    ObserveAll(step_tokens_, static_cast<double>(work.tokens) / steps);
    Observe(*step_seconds_[0], work.plan_seconds / steps);
    Observe(*step_seconds_[1], work.forward_seconds / steps);
    Observe(*step_seconds_[2], work.sample_seconds / steps);
  }
}

void CoordinatorMetrics::Rejected(Rejection reason) {
  rejections_[static_cast<int>(reason)]->Increment();
}

void CoordinatorMetrics::Paused(bool paused) {
  paused ? paused_->Increment() : paused_->Decrement();
}

void CoordinatorMetrics::Update(const GroupState& state, int open_streams) {
  {
    absl::MutexLock lock(&waits_mu_);
    ObserveWaits();
  }
  SetAll(running_, static_cast<double>(state.running));
  SetAll(waiting_, static_cast<double>(state.waiting));
  waiting_tokens_->Set(static_cast<double>(state.waiting_tokens));
  open_streams_->Set(open_streams);
  draining_->Set(state.phase == GroupPhase::kDraining ? 1 : 0);
  group_ready_->Set(state.ready() ? 1 : 0);
  epoch_->Set(static_cast<double>(state.epoch));
  running_by_class_[0]->Set(static_cast<double>(state.running - state.running_batch));
  running_by_class_[1]->Set(static_cast<double>(state.running_batch));
  waiting_by_class_[0]->Set(static_cast<double>(state.waiting - state.waiting_batch));
  waiting_by_class_[1]->Set(static_cast<double>(state.waiting_batch));
  const int64_t used[2] = {state.sliding_pages_used, state.global_pages_used};
  const int64_t cached[2] = {state.sliding_pages_cached, state.global_pages_cached};
  const int64_t total[2] = {state.sliding_pages, state.global_pages};
  double fullest = 0;
  for (int family = 0; family < 2; ++family) {
    const double usage = Share(used[family], total[family]);
    kv_usage_[family]->Set(usage);
    pages_used_[family]->Set(static_cast<double>(used[family]));
    pages_cached_[family]->Set(static_cast<double>(cached[family]));
    pages_total_[family]->Set(static_cast<double>(total[family]));
    fullest = std::max(fullest, usage);
  }
  if (compat_kv_usage_ != nullptr) compat_kv_usage_->Set(fullest);
  for (size_t rank = 0; rank < worker_up_.size(); ++rank) {
    const bool up = rank < state.rank_up.size() && state.rank_up[rank];
    worker_up_[rank]->Set(up ? 1 : 0);
  }
  absl::MutexLock lock(&mu_);
  const bool same = state.epoch == last_.epoch;
  const auto grow = [&](const Counters& counters, uint64_t GroupState::*field) {
    AddAll(counters, Growth(state.*field, last_.*field, same));
  };
  grow(preemptions_, &GroupState::preemptions);
  grow(recomputed_tokens_, &GroupState::recomputed_tokens);
  grow(steps_, &GroupState::steps);
  grow(decode_rows_, &GroupState::decode_rows);
  grow(prefill_tokens_, &GroupState::prefill_tokens);
  grow(prefix_lookup_tokens_, &GroupState::prefix_lookup_tokens);
  grow(prefix_hit_tokens_, &GroupState::prefix_hit_tokens);
  grow(prefix_evicted_pages_, &GroupState::prefix_evicted_pages);
  const bool pages_changed =
      state.sliding_pages != last_.sliding_pages || state.global_pages != last_.global_pages;
  last_ = state;
  if (cache_info_family_ != nullptr && pages_changed) UpdateCacheInfo(state);
}

// Readers take the first series of a name, so the old one goes before the new one comes.
void CoordinatorMetrics::UpdateCacheInfo(const GroupState& state) {
  if (cache_info_ != nullptr) cache_info_family_->Remove(cache_info_);
  const int64_t pages = state.global_pages > 0 ? state.global_pages : state.sliding_pages;
  cache_info_ = &cache_info_family_->Add({{"block_size", absl::StrFormat("%d", kPageTokens)},
                                          {"num_gpu_blocks", absl::StrFormat("%d", pages)},
                                          {"engine", "0"}});
  cache_info_->Set(1);
}

}  // namespace lapidary
