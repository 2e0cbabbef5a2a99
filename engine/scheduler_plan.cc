// The choice of a step: who runs, who is admitted, whose pages are taken. The life of a request is
// in engine/scheduler.cc.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "engine/token_budget_scheduler.h"

namespace lapidary {

namespace {
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);
// Of a step's time, what prompts may always take beside decode rows.
constexpr double kPromptShare = 0.25;
}  // namespace

std::optional<StepPlan> TokenBudgetScheduler::Plan(double now) {
  EndLate(now);
  if (static_cast<int32_t>(in_flight_.size()) >= config_.max_in_flight) return std::nullopt;
  Draft draft;
  draft.budget_left = config_.max_step_tokens;
  draft.now = now;
  draft.plan.rows.reserve(running_.size());
  draft.step.rows.reserve(running_.size());
  PlanRunning(draft);
  // What was just taken from the last must not be given to it again.
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

void TokenBudgetScheduler::EndLate(double now) {
  while (!deadlines_.empty() && deadlines_.begin()->first.first <= now) {
    RequestState& request = *deadlines_.begin()->second;
    End(request, FinishReason::kError,
        absl::DeadlineExceededError(absl::StrFormat(
            "request %d has %d of at most %d tokens at its deadline, %.3f s after it came%s",
            request.sequence.id.value, request.generated(),
            request.end_len - request.sequence.prompt_len, now - request.submit_time,
            request.phase == RequestPhase::kWaiting ? ", and waits" : "")));
  }
}

// Decode first: one token each, for whoever waits for the next one. Then prompts by rank.
void TokenBudgetScheduler::PlanRunning(Draft& draft) {
  std::vector<RequestState*> prompts;
  // Preemption takes only those behind the one at hand, so the iterator stays good.
  for (const auto& entry : running_) {
    RequestState& request = *entry.second;
    if (!request.schedulable()) continue;
    if (request.unscheduled() > 1) {
      prompts.push_back(&request);
    } else {
      AddRow(request, draft);
    }
  }
  draft.prompt_left = PromptBudget(draft);
  for (RequestState* request : prompts) {
    const bool preempted = request->phase != RequestPhase::kRunning;
    if (!preempted && request->schedulable()) AddRow(*request, draft);
  }
}

// Of what is left of the budget, as much as the time target allows beside the decode rows; at least
// a page, so that prompts progress whatever the target. Where the rows alone take most of the
// target prompts get their share of a longer step: without it requests would come in only as others
// end, and the steps would be slow and half empty.
int32_t TokenBudgetScheduler::PromptBudget(const Draft& draft) const {
  if (config_.step_seconds_target <= 0) return draft.budget_left;
  const int32_t rows = draft.step.decode_rows;
  const double seconds =
      std::max(config_.step_seconds_target, cost_.Predict(rows, 0) / (1 - kPromptShare));
  const int32_t in_time = cost_.PromptTokensWithin(seconds, rows);
  return std::min(draft.budget_left, std::max(in_time, kPageTokens));
}

// Adds the next row of a running request; false when neither budget nor pages allow one.
bool TokenBudgetScheduler::AddRow(RequestState& request, Draft& draft) {
  const int32_t start = request.scheduled_len;
  const bool is_prompt = request.unscheduled() > 1;
  const int32_t most =
      is_prompt ? std::min(draft.budget_left, draft.prompt_left) : draft.budget_left;
  const int32_t wanted = start + std::min(request.unscheduled(), most);
  if (wanted == start) return false;
  const int32_t end = FindPages(request, start, wanted, draft);
  if (end <= start) return false;

  const SamplingParams& sampling = request.sequence.sampling;
  const int32_t last_scored = std::min(end, request.sequence.prompt_len - 1);
  const bool scores =
      sampling.prompt_logprobs >= 0 && last_scored >= std::max(request.scored_len, start + 1);
  PlanRow row;
  row.seq = request.sequence.id;
  row.start = start;
  row.len = end - start;
  if (request.samples_in_flight > 0) {
    row.source = InputSource::kSampled;
    row.source_step = request.sample_step;
    row.source_row = request.sample_row;
  }
  row.samples = end == request.pending_len() && request.wants_sample();
  row.needs_host_mask = row.samples && request.sequence.needs_host_mask;
  row.logits = scores ? LogitsMask::kAll : row.samples ? LogitsMask::kLast : LogitsMask::kNone;
  row.pages_added = kv_.Extend(request.pages, end);
  if (!request.known_to_ranks) {
    row.pages_added = request.pages.table;  // with those that were found
    draft.plan.added.push_back(request.sequence);
    draft.plan.added.back().cached_len = start;
  }
  request.known_to_ranks = true;

  const bool decodes = row.len == 1 && row.samples && end > request.sequence.prompt_len;
  (decodes ? totals_.decode_rows : totals_.prefill_tokens) += static_cast<uint64_t>(row.len);
  totals_.recomputed_tokens +=
      static_cast<uint64_t>(std::max(std::min(end, request.lost_len) - start, 0));
  draft.step.rows.push_back({&request, start, row.len, row.samples});
  (row.len == 1 ? draft.step.decode_rows : draft.step.prompt_tokens) += row.len;
  draft.budget_left -= row.len;
  if (is_prompt) draft.prompt_left -= row.len;

  request.scheduled_len = end;
  if (row.samples) {
    ++request.samples_in_flight;
    request.sample_step = next_step_;
    request.sample_row = static_cast<int32_t>(draft.plan.rows.size());
  }
  ++request.rows_in_flight;
  if (request.queue_seconds < 0) {
    request.queue_seconds = std::max(draft.now - request.submit_time, 0.0);
    CountCached(request, start);
  }
  draft.plan.rows.push_back(std::move(row));
  return true;
}

// How far the pages of a request can reach: as far as is wanted by taking what is free and what
// nobody uses; one token further than now by preempting others. `start` when nothing helps now.
int32_t TokenBudgetScheduler::FindPages(const RequestState& request, int32_t start, int32_t wanted,
                                        Draft& draft) {
  int32_t end = kv_.ReachableLength(request.pages, wanted);
  while (end < wanted && TakeIdlePages()) end = kv_.ReachableLength(request.pages, wanted);
  while (end <= start) {
    draft.short_of_pages = true;
    if (!PreemptLast(request)) return start;
    end = kv_.ReachableLength(request.pages, wanted);
  }
  return end;
}

// Takes the pages of one request that holds some and does not run, the last in rank.
bool TokenBudgetScheduler::TakeIdlePages() {
  if (holders_.empty()) return false;
  const auto last = std::prev(holders_.end());
  FreePages(*last->second);
  holders_.erase(last);
  return true;
}

// Takes the pages of the last request in rank that comes after the beneficiary. False when there
// are none to be had now: while the pages of others are about to come back nobody else is asked.
bool TokenBudgetScheduler::PreemptLast(const RequestState& beneficiary) {
  if (leaving_ > 0 || !retiring_.empty()) return false;
  for (const auto& entry : running_) {
    if (entry.second->ending()) return false;
  }
  RequestState& victim = *running_.rbegin()->second;
  return victim.rank > beneficiary.rank && Preempt(victim);
}

// Queues a running request again: its tokens will be computed anew. When its pages are being read
// (false) it gets no more rows, and goes once those in flight are done.
bool TokenBudgetScheduler::Preempt(RequestState& victim) {
  if (!victim.leaving()) ++leaving_;
  victim.preempting = true;
  if (victim.rows_in_flight > 0) return false;
  Leave(victim);
  return true;
}

// From the queues, in order, who has a place in the step and pages until its end. Nobody overtakes
// the one that is next.
void TokenBudgetScheduler::Admit(Draft& draft) {
  std::optional<LookAhead> ahead;
  while (draft.budget_left > 0 && draft.prompt_left > 0) {
    RequestState* next = NextToAdmit();
    if (next == nullptr) return;
    bool room = static_cast<int32_t>(running_.size()) < MostRunning();
    if (room) {
      if (!ahead) ahead.emplace(Foresee(Leaving::kHold, Priority::kBatch));
      AddTo(*ahead, *next);
      room = ahead->Fits() || FitsWithPrefix(*next, ahead);
    }
    if (!room) {
      ahead.reset();
      if (!MakeWayFor(*next)) return;
      continue;
    }
    StartRunning(*next);
    AttachPrefix(*next);
    if (!AddRow(*next, draft)) return;
  }
}

// A step never has more rows than tokens, so each running request gets a token in each step.
int32_t TokenBudgetScheduler::MostRunning() const {
  return std::min(config_.max_running, config_.max_step_tokens);
}

RequestState* TokenBudgetScheduler::NextToAdmit() {
  RequestState* next = queue(Priority::kInteractive).Front();
  return next != nullptr ? next : queue(Priority::kBatch).Front();
}

// Preempts batch work for interactive work that would have room without it: the last in rank, and
// no more than is needed. True when some of it has gone, so that it is worth looking again; what
// has rows in flight goes later.
bool TokenBudgetScheduler::MakeWayFor(const RequestState& next) {
  const int32_t batch = running_of_[static_cast<int>(Priority::kBatch)];
  if (next.priority == Priority::kBatch || batch == 0) return false;
  const auto fits = [&](Priority with) {
    LookAhead ahead = Foresee(Leaving::kGone, with);
    AddTo(ahead, next);
    return ahead.Fits();
  };
  if (static_cast<int32_t>(running_.size()) - batch >= MostRunning()) return false;
  if (!fits(Priority::kInteractive)) return false;
  bool some_gone = false;
  while (static_cast<int32_t>(running_.size()) - leaving_ >= MostRunning() ||
         !fits(Priority::kBatch)) {
    auto victim = running_.rbegin();
    while (victim != running_.rend() && victim->second->leaving()) ++victim;
    if (victim == running_.rend() || victim->second->priority != Priority::kBatch) break;
    some_gone |= Preempt(*victim->second);
  }
  return some_gone;
}

// From its queue among the running ones. Its tenant pays for the tokens that it has not paid for.
void TokenBudgetScheduler::StartRunning(RequestState& request) {
  queue(request.priority).Pop();
  CountWaiting(request, -1);
  const int32_t unpaid = request.total_len() - request.charged_len;
  queue(request.priority).Charge(request.tenant, unpaid);
  request.charged_len = request.total_len();
  if (!request.admitted) request.rank = {request.priority, next_admission_++};
  request.admitted = true;
  request.phase = RequestPhase::kRunning;
  holders_.erase(request.rank);
  kv_.SetIdle(request.pages, false);
  running_[request.rank] = &request;
  ++running_of_[static_cast<int>(request.priority)];
}

// Whether a request that has no room for itself has some when it shares the pages that running ones
// hold of its prefix. Then it holds them too.
bool TokenBudgetScheduler::FitsWithPrefix(RequestState& next, std::optional<LookAhead>& ahead) {
  if (!config_.prefix_cache || next.holds_pages() || next_step_ < next.look_again_step)
    return false;
  AttachPrefix(next);
  if (kv_.SharedGlobalPages(next.pages) > 0) {
    ahead.emplace(Foresee(Leaving::kHold, Priority::kBatch));
    AddTo(*ahead, next);
    if (ahead->Fits()) return true;
  }
  kv_.FreeAll(next.pages);
  next.computed_len = next.scheduled_len = 0;
  next.look_again_step = next_step_ + kPageTokens;  // a look takes as long as its prefix is
  return false;
}

// Begins a request that holds no pages behind the longest prefix that is known.
void TokenBudgetScheduler::AttachPrefix(RequestState& request) {
  if (request.holds_pages()) return;
  request.computed_len = request.scheduled_len = kv_.Attach(
      request.pages, request.cache_key, request.sequence.tokens, request.cacheable_len());
}

// A request's first row starts behind what was found of it.
void TokenBudgetScheduler::CountCached(RequestState& request, int32_t start) {
  if (!config_.prefix_cache || request.cacheable_len() == 0) return;
  request.cached_tokens = std::min(start, request.sequence.prompt_len);
  totals_.prefix_lookup_tokens += static_cast<uint64_t>(request.sequence.prompt_len);
  totals_.prefix_hit_tokens += static_cast<uint64_t>(request.cached_tokens);
}

// The pages that the running requests down to a priority come to need. Those that are about to
// leave keep what they hold, or hold nothing.
LookAhead TokenBudgetScheduler::Foresee(Leaving leaving, Priority last) const {
  LookAhead ahead(kv_, config_.max_in_flight - 1);
  const auto hold = [&](const RequestState& request) {
    if (leaving == Leaving::kGone) return;
    for (KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
      ahead.AddFixed(static_cast<int>(family), request.pages.live(family));
    }
    ahead.AddFixed(kGlobal, -kv_.SharedGlobalPages(request.pages));
  };
  // Once, and until the last of their readers ends: nobody knows here who that is. What only idle
  // requests read is not among them: they leave it to whoever lacks pages.
  ahead.AddFixed(kGlobal, kv_.pool(KvFamily::kGlobal).shared());
  for (const RequestState* request : retiring_) hold(*request);
  for (const auto& entry : running_) {
    const RequestState& request = *entry.second;
    if (request.priority > last) break;
    request.leaving() ? hold(request) : AddTo(ahead, request);
  }
  return ahead;
}

// The first in rank is counted with all that it may generate: nobody is admitted at its expense.
// The others with what requests like them use.
void TokenBudgetScheduler::AddTo(LookAhead& ahead, const RequestState& request) const {
  const int32_t total_len = request.total_len();
  const OutputShare& share = output_share_[static_cast<int>(request.priority)];
  const Rank rank = request.admitted ? request.rank : Rank{request.priority, next_admission_};
  const bool first = running_.empty() || rank <= running_.begin()->first;
  const int32_t len = std::max(total_len, request.scheduled_len);
  const int32_t end_len = first ? LargestKvLen(total_len, request.end_len)
                                : share.ExpectedKvLen(total_len, request.end_len);
  ahead.Add(len, std::max(len, end_len), request.pages.live(KvFamily::kSliding),
            kv_.SharedGlobalPages(request.pages));
}

}  // namespace lapidary
