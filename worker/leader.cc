#include "worker/leader.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "engine/plan_codec.h"

namespace lapidary {
namespace {

EngineEvent Refusal(RequestId id, absl::Status why) {
  EngineEvent event;
  event.id = id;
  event.finish = FinishReason::kError;
  event.error = std::move(why);
  return event;
}

}  // namespace

Leader::Leader(EngineInbox& inbox, Scheduler& scheduler, PlanSender& plans, Executor& executor,
               LeaderOutput& output, StepObserver& observer, std::function<double()> clock,
               const LeaderOptions& options)
    : inbox_(inbox),
      scheduler_(scheduler),
      plans_(plans),
      executor_(executor),
      output_(output),
      observer_(observer),
      clock_(std::move(clock)),
      options_(options) {}

absl::Status Leader::Run() {
  while (true) {
    // A drain ends when the last request does: paused ones are waited for.
    const bool wait =
        in_flight_.empty() && !scheduler_.has_work() && !(draining_ && scheduler_.idle());
    EngineInbox::Batch batch = inbox_.Take(wait, drain_deadline_);
    if (!batch.end.ok()) return batch.end;
    if (batch.drain && !draining_) {
      draining_ = true;
      drain_deadline_ = absl::Now() + options_.drain_timeout;
    }
    const bool asked = !batch.submits.empty() || !batch.cancels.empty() || !batch.pauses.empty();
    std::vector<EngineEvent> events;
    Admit(std::move(batch), &events);
    if (draining_ && absl::Now() >= drain_deadline_) CancelAll(&events);

    const double start = clock_();
    std::optional<StepPlan> plan = scheduler_.Plan(start);
    if (!plan.has_value()) {
      // Cancelled without a step, or failed by the scheduler.
      for (EngineEvent& event : scheduler_.TakeEvents()) events.push_back(std::move(event));
    }
    const bool idle = !plan.has_value() && in_flight_.empty();
    const bool stuck = idle && events.empty() && scheduler_.has_work();
    if (!events.empty()) Report(0, std::move(events));
    if (plan.has_value()) {
      RETURN_IF_ERROR(Submit(*std::move(plan), start));
      // Room for one more: who came meanwhile need not wait for this step.
      if (std::ssize(in_flight_) < options_.max_in_flight) continue;
    }
    if (!in_flight_.empty()) {
      RETURN_IF_ERROR(CompleteOldest());
      continue;
    }
    was_idle_ = true;
    if (asked) output_.Load(scheduler_.stats());
    if (stuck) {
      return absl::InternalError(
          absl::StrFormat("the scheduler has %d requests, nothing in flight, and plans no step",
                          scheduler_.stats().running + scheduler_.stats().waiting));
    }
    if (draining_ && scheduler_.idle()) return TellFollowersToEnd();
  }
}

absl::Status Leader::TellFollowersToEnd() {
  if (!options_.has_followers) return absl::OkStatus();
  StepPlan last;
  last.epoch = options_.epoch;
  last.shutdown = true;
  return plans_.Send(EncodePlan(last));
}

void Leader::Admit(EngineInbox::Batch batch, std::vector<EngineEvent>* events) {
  const double now = clock_();
  for (EngineEvent& refused : batch.refused) events->push_back(std::move(refused));
  for (EngineRequest& request : batch.submits) {
    const RequestId id = request.sequence.id;
    if (draining_) {
      events->push_back(Refusal(id, absl::UnavailableError("the group is draining")));
      continue;
    }
    request.submit_time = now;
    if (request.deadline > 0) request.deadline += now;
    absl::Status admitted = scheduler_.Submit(std::move(request), now);
    if (admitted.ok()) {
      live_.insert(id);
    } else {
      events->push_back(Refusal(id, std::move(admitted)));
    }
  }
  for (const EngineInbox::PauseChange& change : batch.pauses) {
    change.pause ? scheduler_.Pause(change.id) : scheduler_.Resume(change.id);
  }
  for (const RequestId id : batch.cancels) scheduler_.Cancel(id);
}

absl::Status Leader::Submit(StepPlan plan, double planned_at) {
  if (options_.has_followers) RETURN_IF_ERROR(plans_.Send(EncodePlan(plan)));
  observer_.Planned(clock_() - planned_at);
  RETURN_IF_ERROR(executor_.Submit(plan));
  in_flight_.push_back(std::move(plan));
  return absl::OkStatus();
}

absl::Status Leader::CompleteOldest() {
  ASSIGN_OR_RETURN(StepResult result, executor_.Await());
  if (std::exchange(was_idle_, false)) result.idle_seconds = 0;  // there was nothing to compute
  const StepPlan plan = std::move(in_flight_.front());
  in_flight_.pop_front();
  std::vector<EngineEvent> events = scheduler_.Complete(result, clock_());
  observer_.Executed(plan, result);
  if (!events.empty()) Report(plan.step, std::move(events));
  output_.Load(scheduler_.stats());
  return absl::OkStatus();
}

void Leader::Report(uint64_t step, std::vector<EngineEvent> events) {
  for (EngineEvent& event : events) {
    if (event.finish != FinishReason::kNone) live_.erase(event.id);
    if (absl::IsResourceExhausted(event.error)) {
      event.retry_after_seconds = scheduler_.RetryAfterSeconds();
    }
  }
  output_.Events(step, std::move(events));
}

// The drain's time is up: everyone still here is told so, in place of the cancellation's event.
void Leader::CancelAll(std::vector<EngineEvent>* events) {
  for (const RequestId id : live_) scheduler_.Cancel(id);
  for (EngineEvent& event : scheduler_.TakeEvents()) {
    if (event.finish == FinishReason::kCancelled && live_.contains(event.id)) {
      event = Refusal(event.id, absl::UnavailableError(
                                    absl::StrFormat("the group drains and %s are over",
                                                    absl::FormatDuration(options_.drain_timeout))));
    }
    events->push_back(std::move(event));
  }
}

absl::Status RunFollower(PlanReceiver& plans, Executor& executor, StepObserver& observer) {
  std::deque<StepPlan> in_flight;
  // The leader sends the plan after next when it has the results of the oldest: then they are here
  // too. So what is left on its way while this waits for a plan is one step.
  const auto complete_down_to = [&](size_t left) -> absl::Status {
    while (in_flight.size() > left) {
      ASSIGN_OR_RETURN(const StepResult result, executor.Await());
      observer.Executed(in_flight.front(), result);
      in_flight.pop_front();
    }
    return absl::OkStatus();
  };
  while (true) {
    ASSIGN_OR_RETURN(const std::string bytes, plans.Receive());
    ASSIGN_OR_RETURN(StepPlan plan, DecodePlan(bytes));
    if (plan.shutdown) return complete_down_to(0);
    RETURN_IF_ERROR(executor.Submit(plan));
    in_flight.push_back(std::move(plan));
    RETURN_IF_ERROR(complete_down_to(Executor::kMaxInFlight - 1));
  }
}

}  // namespace lapidary
