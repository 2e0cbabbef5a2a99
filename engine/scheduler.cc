#include "engine/scheduler.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "engine/kv_manager.h"
#include "engine/request_state.h"

namespace lapidary {

namespace {

// Requests by age, the oldest first. One total order decides who is planned first, who is admitted
// next, and (from its end) who is preempted: so the oldest request always makes progress.
using ByAge = std::map<uint64_t, RequestState*>;

struct RowInFlight {
  RequestState* request;
  int32_t start;
  int32_t len;
  bool samples;
};

struct StepInFlight {
  uint64_t step;
  std::vector<RowInFlight> rows;
};

// A step while it is being planned.
struct Draft {
  StepPlan plan;
  StepInFlight step;
  int32_t budget_left;          // tokens
  bool short_of_pages = false;  // a running request lacks some: nobody is admitted
  double now;
};

class TokenBudgetScheduler final : public Scheduler {
 public:
  explicit TokenBudgetScheduler(const SchedulerConfig& config)
      : config_(config), kv_(config.pages, config.window) {
    LAPIDARY_CHECK(config.max_context > 0 && config.max_running > 0 && config.max_step_tokens > 0);
    LAPIDARY_CHECK(config.max_in_flight > 0);
  }

  absl::Status Submit(EngineRequest request, double now) override;
  void Cancel(RequestId id) override;
  void Pause(RequestId id) override;
  void Resume(RequestId id) override;
  std::optional<StepPlan> Plan(double now) override;
  std::vector<EngineEvent> Complete(const StepResult& result, double now) override;
  std::vector<EngineEvent> TakeEvents() override { return std::exchange(events_, {}); }
  bool idle() const override { return requests_.empty(); }
  bool has_work() const override { return static_cast<int32_t>(requests_.size()) > paused_; }
  EngineStats stats() const override;

 private:
  absl::Status CheckCanEverFit(const RequestState& request) const;

  // Planning. A row is planned whole or cut to what the budget and the free pages allow.
  void PlanRunning(Draft& draft);
  void Admit(Draft& draft);
  bool AddRow(RequestState& request, Draft& draft);
  bool PreemptYoungest(const RequestState& beneficiary, Draft& draft);
  void Preempt(RequestState& victim);
  void Evict(RequestState& request);
  void Enqueue(RequestState& request);
  void Park(RequestState& request);
  bool HasRoomFor(const RequestState& request) const;
  std::array<int32_t, kKvFamilies> PagesSoon(const RequestState& request) const;

  // Completion.
  void CompleteRow(const RowInFlight& row, const StepResultRow& result,
                   std::vector<EngineEvent>& events);
  void TakeSampled(RequestState& request, const std::vector<ScoredToken>& sampled,
                   EngineEvent& event);
  void Leave(RequestState& request);
  void Retire(RequestState& request);
  void Release(RequestState& request);
  void FailHead();

  const SchedulerConfig config_;
  KvManager kv_;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;
  ByAge waiting_;
  ByAge running_;
  int32_t paused_ = 0;   // requests that are neither waiting, running nor retiring
  int32_t leaving_ = 0;  // whose pages come back when their rows in flight are done
  std::deque<StepInFlight> in_flight_;
  std::vector<RequestId> finished_;  // for the ranks to forget, with the next plan
  std::vector<EngineEvent> events_;  // of no step: cancellations, failures
  uint64_t next_order_ = 0;
  uint64_t next_step_ = 1;
  int64_t waiting_tokens_ = 0;
  EngineStats totals_;  // the counters; gauges are filled by stats()
};

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
  state->submit_time = request.submit_time > 0 ? request.submit_time : now;
  state->end_len = static_cast<int32_t>(
      std::min<int64_t>(state->sequence.prompt_len + max_tokens, config_.max_context));
  state->scored_len = generated > 0 ? state->sequence.prompt_len : 1;
  if (absl::Status fits = CheckCanEverFit(*state); !fits.ok()) return fits;
  if (static_cast<int32_t>(waiting_.size()) >= config_.max_queued) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("request %d found %d requests waiting, the limit is %d: try again later",
                        id.value, waiting_.size(), config_.max_queued));
  }
  ++next_order_;
  Enqueue(*state);
  requests_[id] = std::move(state);
  return absl::OkStatus();
}

absl::Status TokenBudgetScheduler::CheckCanEverFit(const RequestState& request) const {
  // The last token is sampled and never computed on.
  const int32_t kv_len = std::max(request.total_len(), request.end_len - 1);
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

void TokenBudgetScheduler::Cancel(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end() || it->second->phase == RequestPhase::kRetiring) return;
  EngineEvent event;
  event.id = id;
  event.finish = FinishReason::kCancelled;
  events_.push_back(std::move(event));
  Retire(*it->second);
}

void TokenBudgetScheduler::Pause(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  RequestState& request = *it->second;
  if (request.phase == RequestPhase::kRunning) {
    request.pausing = true;
    if (request.rows_in_flight == 0) Park(request);
  } else if (request.phase == RequestPhase::kWaiting) {
    Park(request);
  }
}

void TokenBudgetScheduler::Resume(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  RequestState& request = *it->second;
  request.pausing = false;
  if (request.phase != RequestPhase::kPaused) return;
  --paused_;
  Enqueue(request);
}

std::optional<StepPlan> TokenBudgetScheduler::Plan(double now) {
  if (static_cast<int32_t>(in_flight_.size()) >= config_.max_in_flight) return std::nullopt;
  Draft draft;
  draft.budget_left = config_.max_step_tokens;
  draft.now = now;
  PlanRunning(draft);
  // What was just taken from the youngest must not be given to it again.
  if (!draft.short_of_pages) Admit(draft);
  if (draft.plan.rows.empty()) {
    if (in_flight_.empty() && has_work()) FailHead();
    return std::nullopt;
  }
  draft.plan.epoch = config_.epoch;
  draft.plan.step = draft.step.step = next_step_++;
  draft.plan.finished = std::exchange(finished_, {});
  in_flight_.push_back(std::move(draft.step));
  ++totals_.steps;
  return std::move(draft.plan);
}

void TokenBudgetScheduler::PlanRunning(Draft& draft) {
  // Decode first: one token each, for whoever waits for the next one. Then prompts, oldest first.
  // Preemption erases only entries younger than the one at hand, so the iterator stays good.
  for (const bool decode : {true, false}) {
    for (auto it = running_.begin(); it != running_.end(); ++it) {
      RequestState& request = *it->second;
      if (request.schedulable() && decode == (request.unscheduled() == 1)) AddRow(request, draft);
    }
  }
}

void TokenBudgetScheduler::Admit(Draft& draft) {
  // A step never has more rows than tokens, so each running sequence gets a token in each step.
  const auto max_running =
      static_cast<size_t>(std::min(config_.max_running, config_.max_step_tokens));
  while (!waiting_.empty() && running_.size() < max_running && draft.budget_left > 0) {
    RequestState& head = *waiting_.begin()->second;
    if (!HasRoomFor(head)) return;
    waiting_.erase(head.order);
    waiting_tokens_ -= head.total_len();
    running_[head.order] = &head;
    head.phase = RequestPhase::kRunning;
    if (!AddRow(head, draft)) return;
  }
}

// Adds the next row of a running request; false when neither budget nor pages allow one.
bool TokenBudgetScheduler::AddRow(RequestState& request, Draft& draft) {
  const int32_t start = request.scheduled_len;
  const int32_t wanted = start + std::min(request.unscheduled(), draft.budget_left);
  if (wanted == start) return false;
  int32_t end = kv_.ReachableLength(request.pages, wanted);
  while (end <= start) {
    if (!PreemptYoungest(request, draft)) return false;
    end = kv_.ReachableLength(request.pages, wanted);
  }
  const SamplingParams& sampling = request.sequence.sampling;
  const int32_t last_scored = std::min(end, request.sequence.prompt_len - 1);
  const bool scores =
      sampling.prompt_logprobs >= 0 && last_scored >= std::max(request.scored_len, start + 1);
  PlanRow row;
  row.seq = request.sequence.id;
  row.start = start;
  row.len = end - start;
  row.samples = end == request.pending_len() && request.wants_sample();
  row.needs_host_mask = row.samples && request.sequence.needs_host_mask;
  if (request.samples_in_flight > 0) {
    row.source = InputSource::kSampled;
    row.source_step = request.sample_step;
    row.source_row = request.sample_row;
  }
  row.logits = scores ? LogitsMask::kAll : row.samples ? LogitsMask::kLast : LogitsMask::kNone;
  row.pages_added = kv_.Extend(request.pages, end);
  if (!request.known_to_ranks) draft.plan.added.push_back(request.sequence);

  const bool decodes = row.len == 1 && row.samples && end > request.sequence.prompt_len;
  (decodes ? totals_.decode_rows : totals_.prefill_tokens) += static_cast<uint64_t>(row.len);
  draft.step.rows.push_back({&request, start, row.len, row.samples});
  request.known_to_ranks = true;
  request.scheduled_len = end;
  if (row.samples) {
    ++request.samples_in_flight;
    request.sample_step = next_step_;
    request.sample_row = static_cast<int32_t>(draft.plan.rows.size());
  }
  ++request.rows_in_flight;
  if (request.queue_seconds < 0) {
    request.queue_seconds = std::max(draft.now - request.submit_time, 0.0);
  }
  draft.budget_left -= row.len;
  draft.plan.rows.push_back(std::move(row));
  return true;
}

// Takes the pages of the youngest request that is younger than the beneficiary, and queues it
// again: its tokens will be computed anew. When its pages are being read it gets no more rows, and
// loses them once those in flight are done; nobody else is asked meanwhile. False when there is
// nothing to be had now.
bool TokenBudgetScheduler::PreemptYoungest(const RequestState& beneficiary, Draft& draft) {
  draft.short_of_pages = true;
  if (leaving_ > 0) return false;
  RequestState& victim = *running_.rbegin()->second;
  if (victim.order <= beneficiary.order) return false;
  if (victim.rows_in_flight > 0) {
    victim.preempting = true;
    ++leaving_;
    return false;
  }
  Preempt(victim);
  return true;
}

void TokenBudgetScheduler::Preempt(RequestState& victim) {
  Evict(victim);
  Enqueue(victim);
  ++totals_.preemptions;
}

// Takes a request that has nothing in flight out of the running ones, with all that was computed.
void TokenBudgetScheduler::Evict(RequestState& request) {
  running_.erase(request.order);
  kv_.FreeAll(request.pages);
  if (request.known_to_ranks) finished_.push_back(request.sequence.id);
  request.known_to_ranks = false;
  request.computed_len = request.scheduled_len = 0;
}

void TokenBudgetScheduler::Enqueue(RequestState& request) {
  request.phase = RequestPhase::kWaiting;
  waiting_[request.order] = &request;
  waiting_tokens_ += request.total_len();
}

// Sets a request that has nothing in flight aside until Resume().
void TokenBudgetScheduler::Park(RequestState& request) {
  if (waiting_.erase(request.order) > 0) {
    waiting_tokens_ -= request.total_len();
  } else {
    Evict(request);
  }
  request.pausing = false;
  request.phase = RequestPhase::kPaused;
  ++paused_;
}

// The pages a request needs to compute all tokens it has and one more page of output.
std::array<int32_t, kKvFamilies> TokenBudgetScheduler::PagesSoon(
    const RequestState& request) const {
  const int32_t last = std::max(request.total_len(), request.end_len - 1);
  return kv_.PagesAtLength(std::min(request.total_len() + kPageTokens, last));
}

// Whether a request can be admitted so that neither it nor a running one will soon be preempted:
// what the running ones still lack is reserved for them. Alone in the pools it always has room.
bool TokenBudgetScheduler::HasRoomFor(const RequestState& request) const {
  std::array<int32_t, kKvFamilies> needed = PagesSoon(request);
  for (const auto& entry : running_) {
    const RequestState& other = *entry.second;
    const std::array<int32_t, kKvFamilies> soon = PagesSoon(other);
    for (KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
      const int f = static_cast<int>(family);
      needed[f] += std::max(soon[f] - other.pages.live(family), 0);
    }
  }
  for (KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
    if (needed[static_cast<int>(family)] > kv_.pool(family).free()) return false;
  }
  return true;
}

std::vector<EngineEvent> TokenBudgetScheduler::Complete(const StepResult& result, double) {
  LAPIDARY_CHECK(!in_flight_.empty() && in_flight_.front().step == result.step);
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  LAPIDARY_CHECK(step.rows.size() == result.rows.size());
  std::vector<EngineEvent> events;
  for (size_t i = 0; i < step.rows.size(); ++i) CompleteRow(step.rows[i], result.rows[i], events);
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
      --leaving_;
      Release(request);
    }
    return;
  }
  request.computed_len = row.start + row.len;
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
    request.queue_reported = true;
  }
  if (event.finish != FinishReason::kNone) {
    Retire(request);
  } else if (request.leaving() && request.rows_in_flight == 0) {
    Leave(request);
  } else {
    // Every row still in flight starts at computed_len or later.
    kv_.FreeBehindWindow(request.pages, request.computed_len);
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

// A running request whose last row has come back goes where it was told to.
void TokenBudgetScheduler::Leave(RequestState& request) {
  const bool pausing = request.pausing;
  if (request.preempting) {
    request.preempting = false;
    --leaving_;
    Preempt(request);
  }
  if (pausing) Park(request);
}

// Ends a request. Its pages and its id stay until no row in flight reads them.
void TokenBudgetScheduler::Retire(RequestState& request) {
  if (waiting_.erase(request.order) > 0) waiting_tokens_ -= request.total_len();
  running_.erase(request.order);
  if (request.phase == RequestPhase::kPaused) --paused_;
  if (request.preempting) --leaving_;
  request.phase = RequestPhase::kRetiring;
  request.rows_in_flight == 0 ? Release(request) : void(++leaving_);
}

void TokenBudgetScheduler::Release(RequestState& request) {
  const RequestId id = request.sequence.id;
  kv_.FreeAll(request.pages);
  if (request.known_to_ranks) finished_.push_back(id);
  requests_.erase(id);
}

// Nothing could be planned and nothing will come back that changes this: rather one clear error
// than a loop. What Submit() lets in can always run alone, so this means a bug.
void TokenBudgetScheduler::FailHead() {
  RequestState& head = running_.empty() ? *waiting_.begin()->second : *running_.begin()->second;
  EngineEvent event;
  event.id = head.sequence.id;
  event.finish = FinishReason::kError;
  event.error = absl::InternalError(absl::StrFormat(
      "request %d of %d tokens can not go on: %d sliding and %d global KV pages are free",
      head.sequence.id.value, head.total_len(), kv_.pool(KvFamily::kSliding).free(),
      kv_.pool(KvFamily::kGlobal).free()));
  events_.push_back(std::move(event));
  Retire(head);
}

EngineStats TokenBudgetScheduler::stats() const {
  EngineStats stats = totals_;
  stats.waiting = static_cast<int32_t>(waiting_.size());
  stats.running = static_cast<int32_t>(running_.size());
  stats.paused = paused_;
  stats.waiting_tokens = waiting_tokens_;
  for (KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
    stats.pages_used[static_cast<int>(family)] = kv_.pool(family).used();
    stats.pages_total[static_cast<int>(family)] = kv_.pool(family).total();
  }
  return stats;
}

}  // namespace

std::unique_ptr<Scheduler> Scheduler::Create(const SchedulerConfig& config) {
  return std::make_unique<TokenBudgetScheduler>(config);
}

}  // namespace lapidary
