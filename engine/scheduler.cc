// The life of a request: submission, pause, cancellation, completion. engine/scheduler_plan.cc
// chooses the steps.
#include "engine/scheduler.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "engine/token_budget_scheduler.h"

namespace lapidary {

std::unique_ptr<Scheduler> Scheduler::Create(const SchedulerConfig& config) {
  return std::make_unique<TokenBudgetScheduler>(config);
}

TokenBudgetScheduler::TokenBudgetScheduler(const SchedulerConfig& config)
    : config_(config),
      kv_(config.pages, config.window, config.prefix_cache),
      queues_{FairQueue(config.tenant_weights), FairQueue(config.tenant_weights)},
      output_share_{OutputShare(config.expected_output_share),
                    OutputShare(config.expected_output_share)} {
  LAPIDARY_CHECK(config.max_context > 0 && config.max_running > 0 && config.max_step_tokens > 0);
  LAPIDARY_CHECK(config.max_in_flight > 0);
}

absl::Status TokenBudgetScheduler::Submit(EngineRequest request, double now) {
  const NewSequence& sequence = request.sequence;
  const RequestId id = sequence.id;
  if (requests_.contains(id)) {
    return absl::AlreadyExistsError(absl::StrFormat("request %d is already here", id.value));
  }
  const auto total_len = static_cast<int64_t>(sequence.tokens.size());
  if (sequence.prompt_len < 1 || sequence.prompt_len > total_len) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "request %d has a prompt of %d tokens in a sequence of %d; the prompt needs at least 1",
        id.value, sequence.prompt_len, total_len));
  }
  const int64_t generated = total_len - sequence.prompt_len;
  const int64_t max_tokens = sequence.sampling.max_tokens;
  if (max_tokens < 0 || (generated > 0 && generated >= max_tokens)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "request %d may generate %d tokens and has %d already", id.value, max_tokens, generated));
  }
  const int64_t at_least = total_len + (max_tokens > 0 ? 1 : 0);
  if (at_least > config_.max_context) {
    return absl::InvalidArgumentError(
        absl::StrFormat("request %d needs %d tokens of context (%d are given), the limit is %d",
                        id.value, at_least, total_len, config_.max_context));
  }
  auto state = std::make_unique<RequestState>();
  state->sequence = std::move(request.sequence);
  state->order = next_order_;
  state->priority = request.priority;
  state->submit_time = request.submit_time > 0 ? request.submit_time : now;
  state->deadline = request.deadline;
  state->cache_key = std::move(request.cache_key);
  state->end_len = static_cast<int32_t>(
      std::min<int64_t>(state->sequence.prompt_len + max_tokens, config_.max_context));
  state->scored_len = generated > 0 ? state->sequence.prompt_len : 1;
  if (absl::Status fits = CheckCanEverFit(*state); !fits.ok()) return fits;
  if (absl::Status room = CheckQueue(*state); !room.ok()) return room;
  ++next_order_;
  state->tenant = queue(state->priority).Join(request.tenant);
  if (state->deadline > 0) deadlines_[{state->deadline, state->order}] = state.get();
  Enqueue(*state);
  requests_[id] = std::move(state);
  return absl::OkStatus();
}

absl::Status TokenBudgetScheduler::CheckCanEverFit(const RequestState& request) const {
  const int32_t kv_len = LargestKvLen(request.total_len(), request.end_len);
  const std::array<int32_t, kKvFamilies> need = kv_.PagesAtLength(kv_len);
  for (KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
    const int32_t needed = need[static_cast<int>(family)];
    const int32_t total = kv_.pool(family).total();
    if (needed > total) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "request %d needs %d %s KV pages for its %d tokens of prompt and output, the pool has %d",
          request.sequence.id.value, needed, family == KvFamily::kSliding ? "sliding" : "global",
          request.end_len, total));
    }
  }
  return absl::OkStatus();
}

// Batch work queues behind everything, interactive work only behind its like: a full batch queue
// refuses no interactive request. An empty queue takes a request of any length.
absl::Status TokenBudgetScheduler::CheckQueue(const RequestState& request) const {
  const bool batch = request.priority == Priority::kBatch;
  const int32_t ahead = batch ? waiting() : queue(Priority::kInteractive).size();
  const int64_t tokens = waiting_tokens_[0] + (batch ? waiting_tokens_[1] : 0);
  if (ahead >= config_.max_queued) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("request %d found %d requests waiting, the limit is %d: try again later",
                        request.sequence.id.value, ahead, config_.max_queued));
  }
  if (config_.max_queued_tokens > 0 && ahead > 0 &&
      tokens + request.total_len() > config_.max_queued_tokens) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "request %d of %d tokens found %d tokens waiting, the limit is %d: try again later",
        request.sequence.id.value, request.total_len(), tokens, config_.max_queued_tokens));
  }
  return absl::OkStatus();
}

double TokenBudgetScheduler::RetryAfterSeconds() const {
  const double pace = cost_.tokens_per_second();
  if (pace <= 0) return 1;
  // The share of interactive requests stands for both: it is a hint.
  const double work = static_cast<double>(waiting_tokens_[0] + waiting_tokens_[1]) +
                      output_share_[0].share() * static_cast<double>(waiting_output_);
  return std::max(work / pace, 1.0);
}

void TokenBudgetScheduler::Cancel(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end() || it->second->phase == RequestPhase::kRetiring) return;
  End(*it->second, FinishReason::kCancelled);
}

void TokenBudgetScheduler::Pause(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  RequestState& request = *it->second;
  if (request.phase == RequestPhase::kRunning) {
    if (!request.leaving()) ++leaving_;
    request.pausing = true;
    if (request.rows_in_flight == 0) Leave(request);
  } else if (request.phase == RequestPhase::kWaiting) {
    Dequeue(request);
    Park(request);
  }
}

void TokenBudgetScheduler::Resume(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  RequestState& request = *it->second;
  if (request.pausing && !request.preempting) --leaving_;
  request.pausing = false;
  if (request.phase != RequestPhase::kPaused) return;
  --paused_;
  Enqueue(request);
}

void TokenBudgetScheduler::Enqueue(RequestState& request) {
  request.phase = RequestPhase::kWaiting;
  queue(request.priority).Push(request.tenant, request.order, &request);
  CountWaiting(request, 1);
}

void TokenBudgetScheduler::Dequeue(RequestState& request) {
  LAPIDARY_CHECK(queue(request.priority).Remove(request.tenant, request.order));
  CountWaiting(request, -1);
}

void TokenBudgetScheduler::CountWaiting(const RequestState& request, int sign) {
  waiting_tokens_[static_cast<int>(request.priority)] += sign * request.total_len();
  waiting_output_ += sign * (request.end_len - request.total_len());
}

void TokenBudgetScheduler::StopRunning(RequestState& request) {
  running_.erase(request.rank);
  --running_of_[static_cast<int>(request.priority)];
  if (request.leaving()) --leaving_;
  request.preempting = request.pausing = false;
}

// Sets a request that is neither queued nor running aside until Resume().
void TokenBudgetScheduler::Park(RequestState& request) {
  request.phase = RequestPhase::kPaused;
  ++paused_;
}

// A running request that has nothing in flight goes where it was told to: preempted it loses its
// pages, paused it keeps them until somebody needs them.
void TokenBudgetScheduler::Leave(RequestState& request) {
  const bool preempted = request.preempting, paused = request.pausing;
  StopRunning(request);
  if (preempted) {
    FreePages(request);
    ++totals_.preemptions;
  } else if (request.holds_pages()) {
    kv_.SetIdle(request.pages, true);
    holders_[request.rank] = &request;
  }
  paused ? Park(request) : Enqueue(request);
}

// Takes the pages of a request that has nothing in flight, with all that was computed.
void TokenBudgetScheduler::FreePages(RequestState& request) {
  kv_.FreeAll(request.pages);
  if (request.known_to_ranks) finished_.push_back(request.sequence.id);
  request.known_to_ranks = false;
  request.lost_len = std::max(request.lost_len, request.computed_len);
  request.computed_len = request.scheduled_len = 0;
}

std::vector<EngineEvent> TokenBudgetScheduler::Complete(const StepResult& result, double now) {
  LAPIDARY_CHECK(!in_flight_.empty() && in_flight_.front().step == result.step);
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  LAPIDARY_CHECK(step.rows.size() == result.rows.size());
  cost_.Observe(step.decode_rows, step.prompt_tokens,
                result.forward_seconds + result.sample_seconds);
  std::vector<EngineEvent> events;
  events.reserve(step.rows.size());
  for (size_t i = 0; i < step.rows.size(); ++i) CompleteRow(step.rows[i], result.rows[i], events);
  EndLate(now);
  for (EngineEvent& event : TakeEvents()) events.push_back(std::move(event));
  return events;
}

void TokenBudgetScheduler::CompleteRow(const RowInFlight& row, const StepResultRow& result,
                                       std::vector<EngineEvent>& events) {
  RequestState& request = *row.request;
  LAPIDARY_CHECK(result.seq == request.sequence.id);
  --request.rows_in_flight;
  if (request.phase == RequestPhase::kRetiring) {  // ended meanwhile: what it computed is dropped
    if (request.rows_in_flight == 0) {
      retiring_.erase(std::find(retiring_.begin(), retiring_.end(), &request));
      Release(request);
    }
    return;
  }
  request.computed_len = row.start + row.len;
  kv_.Publish(request.pages, request.cache_key, request.sequence.tokens, request.computed_len);
  EngineEvent event;
  event.id = request.sequence.id;
  for (size_t i = 0; i < result.prompt_scored.size(); ++i) {
    const int32_t position = row.start + 1 + static_cast<int32_t>(i);
    if (position < request.scored_len) continue;  // known from before a preemption
    event.prompt_scored.push_back(result.prompt_scored[i]);
    request.scored_len = position + 1;
  }
  if (row.samples) {
    --request.samples_in_flight;
    TakeSampled(request, result.sampled, event);
  } else if (request.computed_len == request.total_len()) {
    event.finish = FinishReason::kLength;  // nothing was to be generated
  }
  if (!request.queue_reported) {
    event.queue_seconds = request.queue_seconds;
    event.cached_tokens = request.cached_tokens;
    request.queue_reported = true;
  }
  if (event.finish != FinishReason::kNone) {
    if (event.finish != FinishReason::kError) {
      output_share_[static_cast<int>(request.priority)].Observe(
          request.generated(), request.end_len - request.sequence.prompt_len);
    }
    Retire(request);
  } else {
    // Every row still in flight starts at computed_len or later.
    kv_.FreeBehindWindow(request.pages, request.computed_len);
    if (request.leaving() && request.rows_in_flight == 0) Leave(request);
  }
  if (!event.tokens.empty() || !event.prompt_scored.empty() || event.queue_seconds >= 0 ||
      event.finish != FinishReason::kNone) {
    events.push_back(std::move(event));
  }
}

void TokenBudgetScheduler::TakeSampled(RequestState& request,
                                       const std::vector<ScoredToken>& sampled,
                                       EngineEvent& event) {
  const std::vector<TokenId>& stops = request.sequence.sampling.stop_ids;
  for (const ScoredToken& token : sampled) {
    event.tokens.push_back(token);
    request.sequence.tokens.push_back(token.id);
    queue(request.priority).Charge(request.tenant, 1);
    request.charged_len = request.total_len();
    if (std::find(stops.begin(), stops.end(), token.id) != stops.end()) {
      event.finish = FinishReason::kStop;
      event.stop_id = token.id;
      return;
    }
    if (request.total_len() == request.end_len) {
      event.finish = FinishReason::kLength;
      return;
    }
  }
  if (sampled.empty()) {
    event.finish = FinishReason::kError;
    event.error =
        absl::InternalError(absl::StrFormat("request %d: no token was sampled after %d",
                                            request.sequence.id.value, request.total_len()));
  }
}

// Ends a request by no result of its own.
void TokenBudgetScheduler::End(RequestState& request, FinishReason finish, absl::Status error) {
  EngineEvent event;
  event.id = request.sequence.id;
  event.finish = finish;
  event.error = std::move(error);
  events_.push_back(std::move(event));
  Retire(request);
}

// Takes a request out of wherever it is. Its pages and its id stay until no row in flight reads
// them.
void TokenBudgetScheduler::Retire(RequestState& request) {
  switch (request.phase) {
    case RequestPhase::kWaiting:
      Dequeue(request);
      break;
    case RequestPhase::kRunning:
      StopRunning(request);
      break;
    case RequestPhase::kPaused:
      --paused_;
      break;
    case RequestPhase::kRetiring:
      return;
  }
  request.phase = RequestPhase::kRetiring;
  if (request.deadline > 0) deadlines_.erase({request.deadline, request.order});
  if (request.rows_in_flight > 0) {
    retiring_.push_back(&request);
  } else {
    Release(request);
  }
}

void TokenBudgetScheduler::Release(RequestState& request) {
  if (request.admitted) holders_.erase(request.rank);
  FreePages(request);
  queue(request.priority).Leave(request.tenant);
  const RequestId id = request.sequence.id;
  requests_.erase(id);
}

// Nothing could be planned and nothing will come back that changes this: rather one clear error
// than a loop. What Submit() lets in can always run alone, so this means a bug.
void TokenBudgetScheduler::FailHead() {
  RequestState& head = running_.empty() ? *NextToAdmit() : *running_.begin()->second;
  End(head, FinishReason::kError,
      absl::InternalError(absl::StrFormat(
          "request %d of %d tokens can not go on: %d sliding and %d global KV pages are free",
          head.sequence.id.value, head.total_len(), kv_.available(KvFamily::kSliding),
          kv_.available(KvFamily::kGlobal))));
}

EngineStats TokenBudgetScheduler::stats() const {
  EngineStats stats = totals_;
  stats.waiting = waiting();
  stats.running = static_cast<int32_t>(running_.size());
  stats.paused = paused_;
  stats.waiting_batch = queue(Priority::kBatch).size();
  stats.running_batch = running_of_[static_cast<int>(Priority::kBatch)];
  stats.waiting_tokens = waiting_tokens_[0] + waiting_tokens_[1];
  for (KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
    stats.pages_used[static_cast<int>(family)] = kv_.pool(family).used();
    stats.pages_cached[static_cast<int>(family)] = kv_.pool(family).cached();
    stats.pages_total[static_cast<int>(family)] = kv_.pool(family).total();
  }
  stats.prefix_evicted_pages = static_cast<uint64_t>(kv_.evicted_pages());
  return stats;
}

}  // namespace lapidary
