#include "coordinator/coordinator_metrics.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Labels;
using Bounds = prometheus::Histogram::BucketBoundaries;

constexpr int kPageTokens = 16;
constexpr const char* kRejectionNames[kRejections] = {
    "bad_request", "unknown_model", "duplicate_id", "no_group", "draining", "queue_full"};

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

// Adds the same metric under our name and, when wanted, under vLLM's.
class Builder {
 public:
  Builder(prometheus::Registry& registry, const MetricsOptions& options)
      : registry_(registry),
        compat_(options.compat),
        ours_{{"model_name", options.model_name}},
        theirs_{{"model_name", options.model_name}, {"engine", "0"}} {}

  std::vector<prometheus::Histogram*> Histogram(const char* name, const char* compat,
                                                const char* help, const Bounds& bounds) {
    std::vector<prometheus::Histogram*> out = {
        &BuildHistogram().Name(name).Help(help).Register(registry_).Add(ours_, bounds)};
    if (compat_) {
      out.push_back(
          &BuildHistogram().Name(compat).Help(help).Register(registry_).Add(theirs_, bounds));
    }
    return out;
  }
  std::vector<prometheus::Counter*> Counter(const char* name, const char* compat,
                                            const char* help) {
    std::vector<prometheus::Counter*> out = {
        &BuildCounter().Name(name).Help(help).Register(registry_).Add(ours_)};
    if (compat_ && compat != nullptr) {
      out.push_back(&BuildCounter().Name(compat).Help(help).Register(registry_).Add(theirs_));
    }
    return out;
  }
  std::vector<prometheus::Gauge*> Gauge(const char* name, const char* compat, const char* help) {
    std::vector<prometheus::Gauge*> out = {
        &BuildGauge().Name(name).Help(help).Register(registry_).Add(ours_)};
    if (compat_ && compat != nullptr) {
      out.push_back(&BuildGauge().Name(compat).Help(help).Register(registry_).Add(theirs_));
    }
    return out;
  }
  Labels Ours(const char* key, const std::string& value) const {
    Labels labels = ours_;
    labels[key] = value;
    return labels;
  }
  Labels Theirs(const char* key, const std::string& value) const {
    Labels labels = theirs_;
    labels[key] = value;
    return labels;
  }

 private:
  prometheus::Registry& registry_;
  const bool compat_;
  const Labels ours_, theirs_;
};

void ObserveAll(const std::vector<prometheus::Histogram*>& histograms, double value) {
  for (prometheus::Histogram* h : histograms) Observe(*h, value);
}
void AddAll(const std::vector<prometheus::Counter*>& counters, double value) {
  for (prometheus::Counter* c : counters) c->Increment(value);
}
void SetAll(const std::vector<prometheus::Gauge*>& gauges, double value) {
  for (prometheus::Gauge* g : gauges) g->Set(value);
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
  Builder build(registry, options);
  time_to_first_token_ =
      build.Histogram("lapidary_time_to_first_token_seconds", "vllm:time_to_first_token_seconds",
                      "From the request's arrival to its first token.", TimeToFirstTokenBounds());
  inter_token_ =
      build.Histogram("lapidary_inter_token_latency_seconds", "vllm:inter_token_latency_seconds",
                      "Between two tokens of a choice.", InterTokenBounds());
  request_time_ = build.Histogram("lapidary_request_seconds", "vllm:e2e_request_latency_seconds",
                                  "From a request's arrival to its end.", RequestTimeBounds());
  queue_time_ = build.Histogram("lapidary_queue_seconds", "vllm:request_queue_time_seconds",
                                "A request's wait in the engine's queue.", RequestTimeBounds());
  prompt_length_ = build.Histogram("lapidary_request_prompt_tokens", "vllm:request_prompt_tokens",
                                   "Prompt tokens of a request.", TokenCountBounds());
  generation_length_ =
      build.Histogram("lapidary_request_generation_tokens", "vllm:request_generation_tokens",
                      "Generated tokens of a request.", TokenCountBounds());
  prompt_tokens_ = build.Counter("lapidary_prompt_tokens_total", "vllm:prompt_tokens_total",
                                 "Prompt tokens of requests that began to answer.");
  generation_tokens_ = build.Counter("lapidary_generation_tokens_total",
                                     "vllm:generation_tokens_total", "Tokens generated.");
  preemptions_ = build.Counter("lapidary_preemptions_total", "vllm:num_preemptions_total",
                               "Sequences that gave up their pages and were computed again.");
  steps_ = build.Counter("lapidary_steps_total", nullptr, "Model steps.")[0];
  decode_rows_ = build.Counter("lapidary_decode_rows_total", nullptr,
                               "Rows that decoded one token, over all steps.")[0];
  prefill_tokens_ = build.Counter("lapidary_prefill_tokens_total", nullptr,
                                  "Prompt tokens computed, over all steps.")[0];
  running_ = build.Gauge("lapidary_requests_running", "vllm:num_requests_running",
                         "Sequences being computed.");
  waiting_ = build.Gauge("lapidary_requests_waiting", "vllm:num_requests_waiting",
                         "Sequences waiting in the engine's queue.");
  waiting_tokens_ = build.Gauge("lapidary_queued_prompt_tokens", nullptr,
                                "Prompt tokens of waiting sequences.")[0];
  paused_ = build.Gauge("lapidary_requests_paused", nullptr,
                        "Requests paused because their client does not read.")[0];
  open_streams_ = build.Gauge("lapidary_streams_open", nullptr, "Generate calls in progress.")[0];
  draining_ = build.Gauge("lapidary_draining", nullptr, "1 while draining.")[0];
  group_ready_ = build.Gauge("lapidary_group_ready", nullptr, "1 while the group serves.")[0];
  epoch_ = build.Gauge("lapidary_epoch", nullptr, "Epoch of the group.")[0];

  auto& kv = BuildGauge()
                 .Name("lapidary_kv_usage_ratio")
                 .Help("Share of the KV pages in use, by family.")
                 .Register(registry);
  sliding_usage_ = &kv.Add(build.Ours("family", "sliding"));
  global_usage_ = &kv.Add(build.Ours("family", "global"));
  auto& workers = BuildGauge()
                      .Name("lapidary_worker_up")
                      .Help("1 while the rank is connected.")
                      .Register(registry);
  for (int rank = 0; rank < options.tensor_parallel; ++rank) {
    worker_up_.push_back(&workers.Add(build.Ours("rank", absl::StrFormat("%d", rank))));
  }
  auto& requests = BuildCounter()
                       .Name("lapidary_requests_total")
                       .Help("Requests ended, by how they ended.")
                       .Register(registry);
  auto& rejections = BuildCounter()
                         .Name("lapidary_admission_rejections_total")
                         .Help("Requests not taken, by reason.")
                         .Register(registry);
  for (int i = 0; i < kOutcomes; ++i) {
    requests_[i] = &requests.Add(build.Ours("finish", OutcomeName(static_cast<Outcome>(i))));
  }
  for (int i = 0; i < kRejections; ++i) {
    rejections_[i] = &rejections.Add(build.Ours("reason", kRejectionNames[i]));
  }
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
  absl::MutexLock lock(&waits_mu_);
  if (each != wait_seconds_) ObserveWaits();
  wait_seconds_ = each;
  waited_tokens_ += tokens;
}

void CoordinatorMetrics::ObserveWaits() {
  if (waited_tokens_ == 0) return;
  const prometheus::Histogram::BucketBoundaries bounds = InterTokenBounds();
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

void CoordinatorMetrics::Finished(Outcome outcome, double seconds, uint32_t prompt_tokens,
                                  uint32_t generated_tokens) {
  const int index = static_cast<int>(outcome);
  requests_[index]->Increment();
  if (compat_success_[index] != nullptr) compat_success_[index]->Increment();
  ObserveAll(request_time_, seconds);
  ObserveAll(prompt_length_, prompt_tokens);
  ObserveAll(generation_length_, generated_tokens);
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
  const double sliding = Share(state.sliding_pages_used, state.sliding_pages);
  const double global = Share(state.global_pages_used, state.global_pages);
  sliding_usage_->Set(sliding);
  global_usage_->Set(global);
  if (compat_kv_usage_ != nullptr) compat_kv_usage_->Set(std::max(sliding, global));
  for (size_t rank = 0; rank < worker_up_.size(); ++rank) {
    const bool up = rank < state.rank_up.size() && state.rank_up[rank];
    worker_up_[rank]->Set(up ? 1 : 0);
  }
  absl::MutexLock lock(&mu_);
  const bool same = state.epoch == last_.epoch;
  AddAll(preemptions_, Growth(state.preemptions, last_.preemptions, same));
  steps_->Increment(Growth(state.steps, last_.steps, same));
  decode_rows_->Increment(Growth(state.decode_rows, last_.decode_rows, same));
  prefill_tokens_->Increment(Growth(state.prefill_tokens, last_.prefill_tokens, same));
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
