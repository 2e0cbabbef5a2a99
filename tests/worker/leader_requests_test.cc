// What the leader adds to requests and refusals: its clock, and when to try again.
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/fake_model.h"
#include "worker/leader.h"

namespace lapidary {
namespace {

constexpr double kNow = 1000;

// Refuses every request, and keeps it.
class FullScheduler final : public Scheduler {
 public:
  absl::Status Submit(EngineRequest request, double) override {
    requests.push_back(std::move(request));
    return refusal;
  }
  void Cancel(RequestId) override {}
  void Pause(RequestId) override {}
  void Resume(RequestId) override {}
  std::optional<StepPlan> Plan(double) override { return std::nullopt; }
  std::vector<EngineEvent> Complete(const StepResult&, double) override { return {}; }
  std::vector<EngineEvent> TakeEvents() override { return {}; }
  bool idle() const override { return true; }
  bool has_work() const override { return false; }
  EngineStats stats() const override { return {}; }
  double RetryAfterSeconds() const override { return 7; }

  absl::Status refusal = absl::ResourceExhaustedError("full");
  std::vector<EngineRequest> requests;
};

// Ends the leader once it has answered.
class Output final : public LeaderOutput {
 public:
  explicit Output(EngineInbox& inbox) : inbox_(inbox) {}
  void Events(uint64_t, std::vector<EngineEvent> brought) override {
    for (EngineEvent& event : brought) events.push_back(std::move(event));
    inbox_.Drain();
  }
  void Load(const EngineStats&) override {}
  std::vector<EngineEvent> events;

 private:
  EngineInbox& inbox_;
};

class NoMetrics final : public StepObserver {
 public:
  void Planned(double) override {}
  void Executed(const StepPlan&, const StepResult&) override {}
};

// What the leader answers to one request, on this thread.
EngineEvent Ask(FullScheduler& scheduler, double deadline) {
  EngineInbox inbox(8);
  EngineRequest request;
  request.sequence.id = RequestId{1};
  request.deadline = deadline;
  inbox.Submit(std::move(request));
  const auto comms = CreateInprocCommunicators(1);
  FakeModelRunner runner(*comms[0], {8, 8}, 8);
  FakeSampler sampler(*comms[0]);
  Executor executor(runner, sampler, ExecutorConfig{});
  const InprocPlanChannel plans = CreateInprocPlanChannel(1);
  Output output(inbox);
  NoMetrics metrics;
  Leader leader(
      inbox, scheduler, *plans.sender, executor, output, metrics, [] { return kNow; },
      LeaderOptions{});
  EXPECT_TRUE(leader.Run().ok());
  if (output.events.size() != 1) {
    ADD_FAILURE() << output.events.size() << " events";
    return EngineEvent{};
  }
  return output.events[0];
}

TEST(LeaderRequests, ADeadlineIsOnTheLeadersClock) {
  FullScheduler scheduler;
  Ask(scheduler, 2.5);
  Ask(scheduler, 0);
  ASSERT_EQ(scheduler.requests.size(), 2u);
  EXPECT_EQ(scheduler.requests[0].submit_time, kNow);
  EXPECT_EQ(scheduler.requests[0].deadline, kNow + 2.5);
  EXPECT_EQ(scheduler.requests[1].deadline, 0) << "none stays none";
}

TEST(LeaderRequests, AFullQueueSaysWhenToTryAgain) {
  FullScheduler scheduler;
  const EngineEvent full = Ask(scheduler, 0);
  EXPECT_EQ(full.finish, FinishReason::kError);
  EXPECT_EQ(full.error.message(), "full");
  EXPECT_EQ(full.retry_after_seconds, 7);
  scheduler.refusal = absl::InvalidArgumentError("never");
  EXPECT_EQ(Ask(scheduler, 0).retry_after_seconds, 0) << "waiting does not help";
}

}  // namespace
}  // namespace lapidary
