// An engine without threads of its own, for tests: the scheduler and the executors of all ranks,
// driven call by call. The ranks compute on their streams; one thread is enough to drive them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "engine/scheduler.h"
#include "worker/executor.h"

namespace lapidary {

class EngineDrive {
 public:
  // What a request got.
  struct Answer {
    std::vector<ScoredToken> tokens;
    std::vector<ScoredToken> prompt_scored;
    FinishReason finish = FinishReason::kNone;
    int finishes = 0;

    std::vector<TokenId> ids() const {
      std::vector<TokenId> out;
      for (const ScoredToken& t : tokens) out.push_back(t.id);
      return out;
    }
  };

  // The executors outlive this. With `followers_lag` ranks beyond the first await a step only when
  // they must, as they do behind a plan channel; else as soon as the first does.
  EngineDrive(const SchedulerConfig& config, std::vector<Executor*> executors,
              bool followers_lag = false)
      : scheduler_(Scheduler::Create(config)),
        executors_(std::move(executors)),
        followers_lag_(followers_lag) {}

  Scheduler& scheduler() { return *scheduler_; }
  const std::map<uint64_t, Answer>& answers() const { return answers_; }
  int in_flight() const { return executors_[0]->in_flight(); }
  int sampled_rows() const { return sampled_rows_; }

  // Plans a step and submits it on every rank. False when there is nothing to plan.
  absl::StatusOr<bool> Submit() {
    const std::optional<StepPlan> plan = scheduler_->Plan(0);
    if (!plan.has_value()) {
      Take(scheduler_->TakeEvents());
      return false;
    }
    for (const PlanRow& row : plan->rows) {
      if (row.source == InputSource::kSampled) ++sampled_rows_;
    }
    for (size_t r = 0; r < executors_.size(); ++r) {
      RETURN_IF_ERROR(executors_[r]->Submit(*plan));
      if (r > 0 && followers_lag_) {
        while (executors_[r]->in_flight() > 1) RETURN_IF_ERROR(executors_[r]->Await().status());
      }
    }
    return true;
  }

  // Awaits the oldest step and completes it.
  absl::Status Complete() {
    ASSIGN_OR_RETURN(const StepResult result, executors_[0]->Await());
    for (size_t r = 1; r < executors_.size() && !followers_lag_; ++r) {
      ASSIGN_OR_RETURN(const StepResult same, executors_[r]->Await());
      RETURN_IF_ERROR(CheckSame(result, same));
    }
    Take(scheduler_->Complete(result, 0));
    return absl::OkStatus();
  }

  // Submits as much as the scheduler allows, completes one, and so on until nobody is left.
  absl::Status Run() {
    while (!scheduler_->idle()) {
      for (bool more = true; more && in_flight() < Executor::kMaxInFlight;) {
        ASSIGN_OR_RETURN(more, Submit());
      }
      if (in_flight() > 0) RETURN_IF_ERROR(Complete());
    }
    while (in_flight() > 0) RETURN_IF_ERROR(Complete());
    return absl::OkStatus();
  }

 private:
  void Take(const std::vector<EngineEvent>& events) {
    for (const EngineEvent& event : events) {
      Answer& answer = answers_[event.id.value];
      answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
      answer.prompt_scored.insert(answer.prompt_scored.end(), event.prompt_scored.begin(),
                                  event.prompt_scored.end());
      if (event.finish == FinishReason::kNone) continue;
      answer.finish = event.finish;
      ++answer.finishes;
    }
  }

  static absl::Status CheckSame(const StepResult& a, const StepResult& b) {
    bool same = a.step == b.step && a.rows.size() == b.rows.size();
    for (size_t r = 0; same && r < a.rows.size(); ++r) {
      const std::vector<ScoredToken>&x = a.rows[r].sampled, &y = b.rows[r].sampled;
      same = x.size() == y.size() &&
             (x.empty() || (x[0].id == y[0].id && x[0].logprob == y[0].logprob));
    }
    return same ? absl::OkStatus() : absl::InternalError("two ranks differ");
  }

  std::unique_ptr<Scheduler> scheduler_;
  const std::vector<Executor*> executors_;
  const bool followers_lag_;
  std::map<uint64_t, Answer> answers_;
  int sampled_rows_ = 0;
};

}  // namespace lapidary
