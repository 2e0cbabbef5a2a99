// The engine thread's loop: on the leader (rank 0) plan, tell the ranks, execute, report; on the
// others execute what they are told.
//
//   inbox -> Scheduler::Plan -> PlanSender -> Executor::Submit
//                    Executor::Await -> Scheduler::Complete -> LeaderOutput
//
// With two steps in flight all of this, for the step before and for the step after, happens while
// the device computes. Sleeps when there is nothing to compute. The scheduler's clock is read here
// and nowhere else.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/scheduler.h"
#include "worker/engine_inbox.h"
#include "worker/executor.h"
#include "worker/plan_channel.h"

namespace lapidary {

// Where a leader's results go. Called on the engine thread.
class LeaderOutput {
 public:
  virtual ~LeaderOutput() = default;
  // Everything one step brought; step 0: what no step brought (refusals, cancellations).
  virtual void Events(uint64_t step, std::vector<EngineEvent> events) = 0;
  // After each step and on change.
  virtual void Load(const EngineStats& stats) = 0;
};

// What the steps of a rank took, for metrics. Called on the engine thread.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  virtual void Planned(double seconds) = 0;  // leader: planning and telling the others
  virtual void Executed(const StepPlan& plan, const StepResult& result) = 0;
};

struct LeaderOptions {
  bool has_followers = false;
  int max_in_flight = 1;                            // as the scheduler was told
  absl::Duration drain_timeout = absl::Minutes(5);  // then what still runs gets UNAVAILABLE
  uint64_t epoch = 1;
};

class Leader {
 public:
  // All outlive the leader. `clock` gives seconds that never go back.
  Leader(EngineInbox& inbox, Scheduler& scheduler, PlanSender& plans, Executor& executor,
         LeaderOutput& output, StepObserver& observer, std::function<double()> clock,
         const LeaderOptions& options);

  // Runs until drained (OK, the followers told to end) or until something ends the group. The
  // caller then aborts plan channel and communicator with the error.
  absl::Status Run();

 private:
  void Admit(EngineInbox::Batch batch, std::vector<EngineEvent>* events);
  absl::Status Submit(StepPlan plan, double planned_at);
  absl::Status CompleteOldest();
  absl::Status TellFollowersToEnd();
  void Report(uint64_t step, std::vector<EngineEvent> events);
  void CancelAll(std::vector<EngineEvent>* events);

  EngineInbox& inbox_;
  Scheduler& scheduler_;
  PlanSender& plans_;
  Executor& executor_;
  LeaderOutput& output_;
  StepObserver& observer_;
  const std::function<double()> clock_;
  const LeaderOptions options_;

  std::deque<StepPlan> in_flight_;  // submitted and not completed, oldest first
  bool was_idle_ = true;            // nothing was in flight, and nothing to plan
  bool draining_ = false;
  absl::Time drain_deadline_ = absl::InfiniteFuture();
  std::unordered_set<RequestId> live_;  // submitted and not reported as finished
};

// Executes plans until told to end (OK) or until something ends the group. A plan is submitted when
// it comes, while the one before it is still computed.
absl::Status RunFollower(PlanReceiver& plans, Executor& executor, StepObserver& observer);

}  // namespace lapidary
