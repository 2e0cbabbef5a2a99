// The scheduler's one implementation. Its life of a request is in scheduler.cc (what is submitted,
// paused, cancelled, completed), its choice of a step in scheduler_plan.cc.
//
// Where a request is, by phase: waiting in queues_, running in running_, retiring in retiring_,
// paused in requests_ alone. Who holds pages without running is in holders_ too: paused requests,
// and those resumed that wait; nobody reads their pages, so anybody who lacks pages takes them.
#pragma once
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/fair_queue.h"
#include "engine/kv_manager.h"
#include "engine/look_ahead.h"
#include "engine/request_state.h"
#include "engine/scheduler.h"
#include "engine/step_cost.h"

namespace lapidary {

class TokenBudgetScheduler final : public Scheduler {
 public:
  explicit TokenBudgetScheduler(const SchedulerConfig& config);

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
  double RetryAfterSeconds() const override;

 private:
  using ByRank = std::map<Rank, RequestState*>;

  struct RowInFlight {
    RequestState* request;
    int32_t start;
    int32_t len;
    bool samples;
  };
  struct StepInFlight {
    uint64_t step = 0;
    std::vector<RowInFlight> rows;
    int32_t decode_rows = 0;    // of one token
    int32_t prompt_tokens = 0;  // of longer rows
  };
  // A step while it is being planned.
  struct Draft {
    StepPlan plan;
    StepInFlight step;
    int32_t budget_left = 0;      // tokens
    int32_t prompt_left = 0;      // of them, for rows of more than one
    bool short_of_pages = false;  // a running request lacks some: nobody is admitted
    double now = 0;
  };

  // Submission.
  absl::Status CheckCanEverFit(const RequestState& request) const;
  absl::Status CheckQueue(const RequestState& request) const;

  // Planning: scheduler_plan.cc. A row is planned whole or cut to what budget and pages allow.
  void EndLate(double now);
  void PlanRunning(Draft& draft);
  int32_t PromptBudget(const Draft& draft) const;
  bool AddRow(RequestState& request, Draft& draft);
  int32_t FindPages(const RequestState& request, int32_t start, int32_t wanted, Draft& draft);
  void Admit(Draft& draft);
  int32_t MostRunning() const;
  RequestState* NextToAdmit();
  bool MakeWayFor(const RequestState& next);
  void StartRunning(RequestState& request);
  bool FitsWithPrefix(RequestState& next, std::optional<LookAhead>& ahead);
  void AttachPrefix(RequestState& request);
  void CountCached(RequestState& request, int32_t start);
  enum class Leaving { kHold, kGone };
  LookAhead Foresee(Leaving leaving, Priority last) const;
  void AddTo(LookAhead& ahead, const RequestState& request) const;

  // Taking pages back.
  bool TakeIdlePages();
  bool PreemptLast(const RequestState& beneficiary);
  bool Preempt(RequestState& victim);
  void FreePages(RequestState& request);

  // The life of a request.
  void Enqueue(RequestState& request);
  void Dequeue(RequestState& request);
  void CountWaiting(const RequestState& request, int sign);
  void StopRunning(RequestState& request);
  void Park(RequestState& request);
  void Leave(RequestState& request);
  void CompleteRow(const RowInFlight& row, const StepResultRow& result,
                   std::vector<EngineEvent>& events);
  void TakeSampled(RequestState& request, const std::vector<ScoredToken>& sampled,
                   EngineEvent& event);
  void End(RequestState& request, FinishReason finish, absl::Status error = absl::OkStatus());
  void Retire(RequestState& request);
  void Release(RequestState& request);
  void FailHead();

  FairQueue& queue(Priority priority) { return queues_[static_cast<int>(priority)]; }
  const FairQueue& queue(Priority priority) const { return queues_[static_cast<int>(priority)]; }
  int32_t waiting() const { return queues_[0].size() + queues_[1].size(); }

  const SchedulerConfig config_;
  KvManager kv_;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::array<FairQueue, kPriorities> queues_;
  ByRank running_;
  ByRank holders_;
  std::vector<RequestState*> retiring_;
  std::map<std::pair<double, uint64_t>, RequestState*> deadlines_;  // by time and order
  std::array<int32_t, kPriorities> running_of_ = {0, 0};
  int32_t paused_ = 0;
  int32_t leaving_ = 0;  // of the running ones: paused or preempted when their rows are done
  std::deque<StepInFlight> in_flight_;
  std::vector<RequestId> finished_;  // for the ranks to forget, with the next plan
  std::vector<EngineEvent> events_;  // of no step: cancellations, failures
  uint64_t next_order_ = 0;
  uint64_t next_admission_ = 0;
  uint64_t next_step_ = 1;
  std::array<int64_t, kPriorities> waiting_tokens_ = {0, 0};
  int64_t waiting_output_ = 0;  // tokens that those who wait may still generate
  StepCost cost_;
  std::array<OutputShare, kPriorities> output_share_;
  EngineStats totals_;  // the counters; gauges are filled by stats()
};

}  // namespace lapidary
