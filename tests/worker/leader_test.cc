#include "worker/leader.h"

#include <map>
#include <thread>
#include <tuple>

#include "absl/synchronization/notification.h"
#include "engine/plan_codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/fake_model.h"

namespace lapidary {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;

constexpr std::array<int32_t, kKvFamilies> kPages = {40, 24};

// What the leader reported, to wait for from the test's thread.
class RecordingOutput final : public LeaderOutput {
 public:
  struct Request {
    std::vector<TokenId> tokens;
    FinishReason finish = FinishReason::kNone;
    absl::Status error;
    int finishes = 0;
  };

  // Runs once, on the engine thread, when a request has its first token: before the next step.
  void OnFirstToken(uint64_t id, std::function<void()> act) {
    absl::MutexLock lock(&mu_);
    first_token_of_ = id;
    act_ = std::move(act);
  }

  void Events(uint64_t step, std::vector<EngineEvent> events) override {
    std::function<void()> act;
    {
      absl::MutexLock lock(&mu_);
      Record(step, events);
      if (!requests_[first_token_of_].tokens.empty()) act = std::exchange(act_, nullptr);
    }
    if (act) act();
  }
  void Load(const EngineStats& stats) override {
    absl::MutexLock lock(&mu_);
    stats_ = stats;
  }

  bool AwaitFinished(int count) {
    absl::MutexLock lock(&mu_);
    const auto enough = [&] { return finished_ >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(60));
  }
  Request Get(uint64_t id) {
    absl::MutexLock lock(&mu_);
    return requests_[id];
  }
  EngineStats stats() {
    absl::MutexLock lock(&mu_);
    return stats_;
  }
  int repeated_steps() {
    absl::MutexLock lock(&mu_);
    return repeated_steps_;
  }

 private:
  void Record(uint64_t step, const std::vector<EngineEvent>& events) {
    if (step != 0 && step == last_step_) ++repeated_steps_;
    if (step != 0) last_step_ = step;
    for (const EngineEvent& event : events) {
      Request& request = requests_[event.id.value];
      for (const ScoredToken& t : event.tokens) request.tokens.push_back(t.id);
      if (event.finish == FinishReason::kNone) continue;
      request.finish = event.finish;
      request.error = event.error;
      ++request.finishes;
      ++finished_;
    }
  }

  absl::Mutex mu_;
  uint64_t first_token_of_ = 0;
  std::function<void()> act_;
  std::map<uint64_t, Request> requests_;
  EngineStats stats_;
  uint64_t last_step_ = 0;
  int finished_ = 0;
  int repeated_steps_ = 0;
};

class NoObserver final : public StepObserver {
 public:
  void Planned(double) override {}
  void Executed(const StepPlan&, const StepResult&) override { ++steps; }
  int steps = 0;
};

// A whole group in this process: one thread per rank, as the worker processes are.
class Group {
 public:
  explicit Group(int size, absl::Duration drain_timeout = absl::Hours(1), int max_in_flight = 2)
      : comms(CreateInprocCommunicators(size)),
        channel(CreateInprocPlanChannel(size)),
        results_(size) {
    for (int r = 0; r < size; ++r) {
      threads_.emplace_back([this, r, size, drain_timeout, max_in_flight] {
        FakeModelRunner runner(*comms[r], kPages, 8);
        FakeSampler sampler(*comms[r]);
        ExecutorConfig config{
            .epoch = 1, .pages = kPages, .max_logits_rows = 8, .vocab = kFakeVocab};
        Executor executor(runner, sampler, config);
        NoObserver observer;
        if (r > 0) {
          results_[r] = RunFollower(*channel.receivers[r - 1], executor, observer);
        } else {
          SchedulerConfig scheduling;
          scheduling.pages = kPages;
          scheduling.window = kFakeWindow;
          scheduling.max_context = 300;
          scheduling.max_running = 8;
          scheduling.max_step_tokens = 24;
          scheduling.max_queued = 20;
          scheduling.max_in_flight = max_in_flight;
          const auto scheduler = Scheduler::Create(scheduling);
          LeaderOptions options;
          options.has_followers = size > 1;
          options.max_in_flight = max_in_flight;
          options.drain_timeout = drain_timeout;
          double now = 0;
          Leader leader(
              inbox, *scheduler, *channel.sender, executor, output, observer,
              [&now] { return now += 0.001; }, options);
          results_[0] = leader.Run();
        }
        if (results_[r].ok()) return;
        comms[r]->Abort(std::string(results_[r].message()));  // as the worker session does
        channel.sender->Abort(std::string(results_[r].message()));
      });
    }
  }
  ~Group() {
    inbox.End(absl::CancelledError("test over"));
    Join();
  }
  std::vector<absl::Status> Join() {
    for (std::thread& t : threads_) {
      if (t.joinable()) t.join();
    }
    return results_;
  }

  std::vector<std::unique_ptr<Communicator>> comms;
  InprocPlanChannel channel;
  EngineInbox inbox{64};
  RecordingOutput output;

 private:
  std::vector<absl::Status> results_;
  std::vector<std::thread> threads_;
};

// Ranks, and steps in flight.
class LeaderGroupTest : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(LeaderGroupTest, ServesRequestsAndDrains) {
  Group group(std::get<0>(GetParam()), absl::Hours(1), std::get<1>(GetParam()));
  for (uint64_t id = 1; id <= 12; ++id) {
    group.inbox.Submit(Request(id, static_cast<int>(1 + id * 13), 30));
  }
  ASSERT_TRUE(group.output.AwaitFinished(12));
  group.inbox.Submit(Request(20, 5, 10));  // after an idle pause
  ASSERT_TRUE(group.output.AwaitFinished(13));
  group.output.OnFirstToken(21, [&group] {
    group.inbox.Drain();
    group.inbox.Submit(Request(22, 5, 10));  // too late
  });
  group.inbox.Submit(Request(21, 5, 40));
  for (const absl::Status& s : group.Join()) EXPECT_TRUE(s.ok()) << s;

  for (uint64_t id = 1; id <= 12; ++id) {
    const auto got = group.output.Get(id);
    EXPECT_THAT(got.tokens, ElementsAreArray(FakeReference::Continue(
                                Prompt(static_cast<int>(id), static_cast<int>(1 + id * 13)), 30)))
        << "request " << id;
    EXPECT_EQ(got.finish, FinishReason::kLength);
    EXPECT_EQ(got.finishes, 1);
  }
  EXPECT_EQ(group.output.Get(21).tokens.size(), 40u) << "a drain finishes what runs";
  EXPECT_EQ(group.output.Get(22).error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group.output.repeated_steps(), 0) << "tokens of one step come in one message";
  EXPECT_EQ(group.output.stats().running, 0);
  EXPECT_EQ(group.output.stats().pages_used, (std::array<int32_t, kKvFamilies>{0, 0}));
}

INSTANTIATE_TEST_SUITE_P(Ranks, LeaderGroupTest,
                         testing::Combine(testing::Values(1, 2, 4), testing::Values(1, 2)));

TEST(Leader, RefusalsAndCancellationsEndOnce) {
  Group group(1);
  group.output.OnFirstToken(2, [&group] {
    group.inbox.Cancel(RequestId{2});
    group.inbox.Cancel(RequestId{77});  // unknown
  });
  group.inbox.Submit(Request(1, 500, 10));  // beyond the context
  group.inbox.Submit(Request(2, 10, 200));
  EngineEvent refused;
  refused.id = RequestId{3};
  refused.finish = FinishReason::kError;
  refused.error = absl::InvalidArgumentError("no request");
  group.inbox.Refuse(refused);
  ASSERT_TRUE(group.output.AwaitFinished(3));
  EXPECT_EQ(group.output.Get(1).error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(group.output.Get(2).finish, FinishReason::kCancelled);
  EXPECT_EQ(group.output.Get(2).tokens.size(), 1u) << "nothing is computed past a cancel";
  EXPECT_EQ(group.output.Get(3).error.message(), "no request");
  group.inbox.Drain();
  EXPECT_TRUE(group.Join()[0].ok());
  for (const uint64_t id : {1, 2, 3}) EXPECT_EQ(group.output.Get(id).finishes, 1);
  EXPECT_EQ(group.output.stats().pages_used[1], 0) << "a cancelled request's pages are freed";
}

TEST(Leader, CancelWhileOnlyWaitingIsReported) {
  Group group(1);
  {
    // In one batch: submitted and cancelled before any step.
    group.inbox.Submit(Request(1, 10, 5));
    group.inbox.Cancel(RequestId{1});
  }
  ASSERT_TRUE(group.output.AwaitFinished(1));
  EXPECT_EQ(group.output.Get(1).finishes, 1);
}

TEST(Leader, APausedRequestBlocksNobodyAndGoesOnWhenResumed) {
  Group group(2);
  group.output.OnFirstToken(1, [&group] { group.inbox.Pause(RequestId{1}); });
  group.inbox.Submit(Request(1, 40, 50));
  group.inbox.Submit(Request(2, 40, 50));
  ASSERT_TRUE(group.output.AwaitFinished(1));
  EXPECT_EQ(group.output.Get(2).finish, FinishReason::kLength);
  EXPECT_LE(group.output.Get(1).tokens.size(), 2u) << "what was on its way, and nothing past it";
  group.inbox.Submit(Request(3, 5, 5));  // while there are only paused ones
  ASSERT_TRUE(group.output.AwaitFinished(2));
  group.inbox.Drain();  // waits for it
  group.inbox.Resume(RequestId{1});
  for (const absl::Status& s : group.Join()) EXPECT_TRUE(s.ok()) << s;
  EXPECT_THAT(group.output.Get(1).tokens,
              ElementsAreArray(FakeReference::Continue(Prompt(1, 40), 50)));
  EXPECT_EQ(group.output.Get(1).finishes, 1);
  EXPECT_EQ(group.output.stats().pages_used, (std::array<int32_t, kKvFamilies>{0, 0}));
}

TEST(Leader, ADrainEndsPausedRequestsWhenItsTimeIsUp) {
  Group group(1, absl::Milliseconds(50));
  group.output.OnFirstToken(1, [&group] {
    group.inbox.Pause(RequestId{1});
    group.inbox.Drain();
  });
  group.inbox.Submit(Request(1, 40, 50));
  EXPECT_TRUE(group.Join()[0].ok());
  EXPECT_EQ(group.output.Get(1).error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group.output.Get(1).finishes, 1);
}

TEST(Leader, AFullQueueRefusesTheRest) {
  Group group(1);
  for (uint64_t id = 1; id <= 60; ++id) group.inbox.Submit(Request(id, 40, 20));
  ASSERT_TRUE(group.output.AwaitFinished(60));
  int refused = 0;
  for (uint64_t id = 1; id <= 60; ++id) {
    const auto got = group.output.Get(id);
    EXPECT_EQ(got.finishes, 1);
    if (got.finish == FinishReason::kLength) continue;
    EXPECT_EQ(got.error.code(), absl::StatusCode::kResourceExhausted) << got.error;
    ++refused;
  }
  // Depending on how the batches fell, between none and all beyond the queue's 20.
  EXPECT_LE(refused, 40);
}

TEST(Leader, DrainEndsWhatDoesNotEnd) {
  Group group(1, /*drain_timeout=*/absl::ZeroDuration());
  group.output.OnFirstToken(1, [&group] { group.inbox.Drain(); });
  group.inbox.Submit(Request(1, 10, 250));
  EXPECT_TRUE(group.Join()[0].ok());
  const auto got = group.output.Get(1);
  EXPECT_EQ(got.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(got.error.message(), HasSubstr("drains"));
  EXPECT_EQ(got.finishes, 1);
}

TEST(Leader, ARankThatFailsEndsAllWithItsReason) {
  Group group(3);
  group.output.OnFirstToken(1, [&group] { group.comms[2]->Abort("rank 2 (process 42) died"); });
  group.inbox.Submit(Request(1, 10, 250));
  for (const absl::Status& s : group.Join()) {
    EXPECT_EQ(s.code(), absl::StatusCode::kUnavailable) << s;
    EXPECT_EQ(s.message(), "rank 2 (process 42) died");
  }
}

TEST(Leader, AnIdleLeaderIsWokenByTheEnd) {
  Group group(2);
  group.inbox.End(absl::UnavailableError("the coordinator is gone"));
  for (const absl::Status& s : group.Join()) {
    EXPECT_EQ(s.message(), "the coordinator is gone");
  }
}

TEST(Leader, AFollowerRefusesGarbage) {
  auto comms = CreateInprocCommunicators(1);
  InprocPlanChannel channel = CreateInprocPlanChannel(2);
  FakeModelRunner runner(*comms[0], kPages, 8);
  FakeSampler sampler(*comms[0]);
  Executor executor(runner, sampler, ExecutorConfig{.epoch = 1, .pages = kPages, .vocab = 97});
  NoObserver observer;
  ASSERT_TRUE(channel.sender->Send("no plan").ok());
  EXPECT_EQ(RunFollower(*channel.receivers[0], executor, observer).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(EngineInbox, SaysWhenItIsFullAndWhenItIsNotAnyMore) {
  EngineInbox inbox(2);
  int told = 0;
  inbox.set_on_space([&told] { ++told; });
  EXPECT_TRUE(inbox.Submit(Request(1, 1, 1)));
  EXPECT_EQ(inbox.Take(false, absl::InfiniteFuture()).submits.size(), 1u);
  EXPECT_EQ(told, 0);
  EXPECT_TRUE(inbox.Submit(Request(1, 1, 1)));
  EXPECT_FALSE(inbox.Submit(Request(2, 1, 1)));
  EXPECT_EQ(inbox.Take(true, absl::InfiniteFuture()).submits.size(), 2u);
  EXPECT_EQ(told, 1);
  EXPECT_TRUE(inbox.Take(true, absl::InfinitePast()).submits.empty());
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace lapidary
