// Two steps on their way: what the second one begins with, what happens to it when the first one
// fails or a sequence ends, and that no order of events changes a token.
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/engine_drive.h"
#include "tests/worker/fake_model.h"

namespace lapidary {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;

constexpr std::array<int32_t, kKvFamilies> kPages = {40, 24};

struct Rank {
  explicit Rank(Communicator& comm)
      : runner(comm, kPages, 16),
        sampler(comm),
        executor(runner, sampler,
                 ExecutorConfig{
                     .epoch = 1, .pages = kPages, .max_logits_rows = 16, .vocab = kFakeVocab}) {}

  // Holds the stream until the notification.
  void Hold(absl::Notification& go) {
    runner.stream().Enqueue([&go] {
      go.WaitForNotification();
      return absl::OkStatus();
    });
  }

  FakeModelRunner runner;
  FakeSampler sampler;
  Executor executor;
};

SchedulerConfig Config(int max_in_flight, int max_step_tokens = 24) {
  SchedulerConfig config;
  config.pages = kPages;
  config.window = kFakeWindow;
  config.max_context = 400;
  config.max_running = 8;
  config.max_step_tokens = max_step_tokens;
  config.max_in_flight = max_in_flight;
  return config;
}

// Plans by hand for sequence 7: its prompt of 20 in step 1, then one token a step.
constexpr int kPromptLen = 20;
StepPlan FirstPlan() {
  StepPlan plan;
  plan.epoch = plan.step = 1;
  NewSequence added;
  added.id = RequestId{7};
  added.tokens = Prompt(7, kPromptLen);
  added.prompt_len = kPromptLen;
  plan.added.push_back(added);
  PlanRow row;
  row.seq = added.id;
  row.len = kPromptLen;
  row.logits = LogitsMask::kLast;
  row.samples = true;
  for (auto& pages : row.pages_added) pages = {PageId{3}, PageId{1}};
  plan.rows.push_back(row);
  return plan;
}
StepPlan NextPlan(uint64_t step) {
  StepPlan plan;
  plan.epoch = 1;
  plan.step = step;
  PlanRow row;
  row.seq = RequestId{7};
  row.start = kPromptLen + static_cast<int32_t>(step) - 2;
  row.len = 1;
  row.source = InputSource::kSampled;
  row.source_step = step - 1;
  row.logits = LogitsMask::kLast;
  row.samples = true;
  plan.rows.push_back(row);
  return plan;
}

TEST(ExecutorPipeline, TheNextStepIsSubmittedWhileTheDeviceComputes) {
  auto comms = CreateInprocCommunicators(1);
  Rank rank(*comms[0]);
  absl::Notification go;
  rank.Hold(go);
  ASSERT_TRUE(rank.executor.Submit(FirstPlan()).ok());
  ASSERT_TRUE(rank.executor.Submit(NextPlan(2)).ok()) << "its token does not exist yet";
  EXPECT_EQ(rank.executor.in_flight(), 2);
  EXPECT_EQ(rank.runner.computed, 0);
  EXPECT_THAT(rank.executor.Submit(NextPlan(3)).message(), HasSubstr("2 steps are on their way"));
  go.Notify();
  const std::vector<TokenId> expected = FakeReference::Continue(Prompt(7, kPromptLen), 12);
  for (uint64_t step = 1; step <= 10; ++step) {
    const absl::StatusOr<StepResult> result = rank.executor.Await();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->step, step);
    ASSERT_EQ(result->rows[0].sampled.size(), 1u);
    EXPECT_EQ(result->rows[0].sampled[0].id, expected[step - 1]) << "step " << step;
    ASSERT_TRUE(rank.executor.Submit(NextPlan(step + 2)).ok());
  }
}

TEST(ExecutorPipeline, ASourceThatIsNotTheTokensIsAnError) {
  struct Case {
    const char* want;
    std::function<void(PlanRow&)> spoil;
  };
  const std::vector<Case> cases = {
      {"row 0 of step 3", [](PlanRow& r) { r.source_step = 3; }},
      {"row 1 of step 1", [](PlanRow& r) { r.source_row = 1; }},
      {"[20, 22)", [](PlanRow& r) { r.len = 2; }},
      {"20 of them cached", [](PlanRow& r) { r.start = 21; }},
      {"does not know", [](PlanRow& r) { r.seq = RequestId{8}; }},
  };
  for (const Case& c : cases) {
    auto comms = CreateInprocCommunicators(1);
    Rank rank(*comms[0]);
    ASSERT_TRUE(rank.executor.Submit(FirstPlan()).ok());
    StepPlan plan = NextPlan(2);
    c.spoil(plan.rows[0]);
    const absl::Status status = rank.executor.Submit(plan);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << c.want;
    EXPECT_THAT(status.message(), HasSubstr(c.want));
    EXPECT_EQ(rank.runner.forwards, 1) << c.want;
  }
}

TEST(ExecutorPipeline, AStepBehindAFailedOneIsNotComputed) {
  auto comms = CreateInprocCommunicators(1);
  Rank rank(*comms[0]);
  rank.runner.failing_forward = 2;
  absl::Notification go;
  rank.Hold(go);
  ASSERT_TRUE(rank.executor.Submit(FirstPlan()).ok());
  ASSERT_TRUE(rank.executor.Submit(NextPlan(2)).ok());
  go.Notify();
  ASSERT_TRUE(rank.executor.Await().ok()) << "the step before the failed one has its result";
  ASSERT_TRUE(rank.executor.Submit(NextPlan(3)).ok());
  EXPECT_EQ(rank.executor.Await().status().message(), "the device is gone");
  EXPECT_EQ(rank.executor.in_flight(), 0) << "the one behind it is dropped";
  EXPECT_FALSE(rank.executor.Await().ok());
  EXPECT_EQ(rank.runner.computed, 1);
}

// One of two ranks fails with a step submitted behind: both end, whoever waits for whom.
TEST(ExecutorPipeline, ARankThatFailsEndsTheOther) {
  for (int failing = 0; failing < 2; ++failing) {
    for (const int forward : {1, 2, 3}) {
      auto comms = CreateInprocCommunicators(2);
      Rank a(*comms[0]), b(*comms[1]);
      Rank* const ranks[] = {&a, &b};
      ranks[failing]->runner.failing_forward = forward;
      absl::Status status;
      for (uint64_t step = 1; step <= 4; ++step) {
        for (Rank* rank : ranks) {
          status.Update(rank->executor.Submit(step == 1 ? FirstPlan() : NextPlan(step)));
        }
        if (step == 1) continue;
        status.Update(ranks[failing]->executor.Await().status());
        if (!status.ok()) break;
        status.Update(ranks[1 - failing]->executor.Await().status());
      }
      EXPECT_EQ(status.message(), "the device is gone");
      comms[failing]->Abort("rank failed");  // as the worker session does
      EXPECT_EQ(ranks[1 - failing]->executor.Await().status().message(), "rank failed");
    }
  }
}

TEST(ExecutorPipeline, AnExecutorThatGoesWaitsForItsSteps) {
  auto comms = CreateInprocCommunicators(1);
  FakeModelRunner runner(*comms[0], kPages, 16);
  FakeSampler sampler(*comms[0]);
  absl::Notification go;
  std::thread later;
  {
    Executor executor(runner, sampler,
                      ExecutorConfig{.epoch = 1, .pages = kPages, .vocab = kFakeVocab});
    runner.stream().Enqueue([&go] {
      go.WaitForNotification();
      return absl::OkStatus();
    });
    ASSERT_TRUE(executor.Submit(FirstPlan()).ok());
    ASSERT_TRUE(executor.Submit(NextPlan(2)).ok());
    later = std::thread([&go] { go.Notify(); });
  }
  EXPECT_EQ(runner.computed, 2);
  later.join();
}

// A sequence is forgotten, and begins anew under its id with other tokens and pages, while the row
// of its former life is on its way.
TEST(ExecutorPipeline, ASequenceMayLeaveWhileItsRowIsOnItsWay) {
  auto comms = CreateInprocCommunicators(1);
  Rank rank(*comms[0]);
  absl::Notification go;
  rank.Hold(go);
  ASSERT_TRUE(rank.executor.Submit(FirstPlan()).ok());
  StepPlan again = FirstPlan();
  again.step = 2;
  again.finished = {RequestId{7}};
  again.added[0].tokens = Prompt(9, kPromptLen);
  for (auto& pages : again.rows[0].pages_added) pages = {PageId{5}, PageId{6}};
  ASSERT_TRUE(rank.executor.Submit(again).ok());
  go.Notify();
  const absl::StatusOr<StepResult> first = rank.executor.Await();
  const absl::StatusOr<StepResult> second = rank.executor.Await();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->rows[0].sampled[0].id, FakeReference::Next(Prompt(7, kPromptLen)));
  EXPECT_EQ(second->rows[0].sampled[0].id, FakeReference::Next(Prompt(9, kPromptLen)));
}

struct RanksCase {
  int ranks;
  int max_in_flight;
  bool followers_lag;
};

class PipelineRanksTest : public testing::TestWithParam<RanksCase> {};

// As in executor_test, through pools that are too small: chunks, preemption, one or two in flight.
// Followers that await late have on its way what the leader calls known.
TEST_P(PipelineRanksTest, MixedRequestsGetTheirOwnTokens) {
  auto comms = CreateInprocCommunicators(GetParam().ranks);
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<Executor*> executors;
  for (const auto& comm : comms) {
    ranks.push_back(std::make_unique<Rank>(*comm));
    executors.push_back(&ranks.back()->executor);
  }
  EngineDrive drive(Config(GetParam().max_in_flight), executors, GetParam().followers_lag);
  constexpr int kOutput = 100;
  const std::vector<int> lengths = {1, 2, 15, 16, 17, 33, 70, 150, 200, 5};
  for (size_t i = 0; i < lengths.size(); ++i) {
    ASSERT_TRUE(drive.scheduler().Submit(Request(i, lengths[i], kOutput), 0).ok());
  }
  const absl::Status ran = drive.Run();
  ASSERT_TRUE(ran.ok()) << ran;
  for (size_t i = 0; i < lengths.size(); ++i) {
    EXPECT_THAT(drive.answers().at(i).ids(),
                ElementsAreArray(FakeReference::Continue(Prompt(i, lengths[i]), kOutput)))
        << "request " << i;
  }
  EXPECT_GT(drive.scheduler().stats().preemptions, 0u) << "the pools were meant to be too small";
  EXPECT_EQ(drive.sampled_rows() > 0, GetParam().max_in_flight == 2);
}

INSTANTIATE_TEST_SUITE_P(Ranks, PipelineRanksTest,
                         testing::Values(RanksCase{1, 1, false}, RanksCase{1, 2, false},
                                         RanksCase{2, 2, false}, RanksCase{3, 2, false},
                                         RanksCase{2, 1, true}, RanksCase{3, 2, true}),
                         [](const auto& info) {
                           return absl::StrFormat("%d_ranks_%d_deep%s", info.param.ranks,
                                                  info.param.max_in_flight,
                                                  info.param.followers_lag ? "_lagging" : "");
                         });

// A small case in every order of events: two requests, one of which stops at a token that the step
// behind it has computed on already; a cancel, a pause and a resume anywhere between the steps.
class Interleavings {
 public:
  // All ways to go on from `prefix`, `depth` deep; then each is run to its end.
  void Explore(const std::string& prefix, int depth) {
    if (depth == 0) return RunOne(prefix);
    for (const char action : std::string("sca")) Explore(prefix + action, depth - 1);
    if (prefix.find('p') == std::string::npos) {
      Explore(prefix + 'p', depth - 1);
    } else if (prefix.find('r') == std::string::npos) {
      Explore(prefix + 'r', depth - 1);
    }
  }
  int runs() const { return runs_; }

 private:
  void RunOne(const std::string& order) {
    if (std::count(order.begin(), order.end(), 'a') > 1) return;
    SCOPED_TRACE(order);
    ++runs_;
    auto comms = CreateInprocCommunicators(1);
    Rank rank(*comms[0]);
    EngineDrive drive(Config(2, 12), {&rank.executor});
    const std::vector<TokenId> one = FakeReference::Continue(Prompt(1, 14), 6);
    EngineRequest first = Request(1, 14, 20);
    first.sequence.sampling.stop_ids = {one[2]};
    ASSERT_TRUE(drive.scheduler().Submit(std::move(first), 0).ok());
    ASSERT_TRUE(drive.scheduler().Submit(Request(2, 5, 4), 0).ok());
    for (const char action : order) {
      absl::Status done;
      if (action == 's' && drive.in_flight() < 2) done = drive.Submit().status();
      if (action == 'c' && drive.in_flight() > 0) done = drive.Complete();
      if (action == 'a') drive.scheduler().Cancel(RequestId{2});
      if (action == 'p') drive.scheduler().Pause(RequestId{1});
      if (action == 'r') drive.scheduler().Resume(RequestId{1});
      ASSERT_TRUE(done.ok()) << done;
    }
    drive.scheduler().Resume(RequestId{1});
    const absl::Status ran = drive.Run();
    ASSERT_TRUE(ran.ok()) << ran;
    const EngineDrive::Answer& stopped = drive.answers().at(1);
    EXPECT_THAT(stopped.ids(), ElementsAre(one[0], one[1], one[2]));
    EXPECT_EQ(stopped.finish, FinishReason::kStop);
    EXPECT_EQ(stopped.finishes, 1);
    const EngineDrive::Answer& other = drive.answers().at(2);
    const std::vector<TokenId> ids = other.ids(), two = FakeReference::Continue(Prompt(2, 5), 4);
    EXPECT_EQ(other.finishes, 1);
    ASSERT_LE(ids.size(), two.size());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), two.begin()));
    EXPECT_TRUE(other.finish ==
                (ids.size() == 4 ? FinishReason::kLength : FinishReason::kCancelled))
        << ids.size();
    EXPECT_TRUE(ids.size() == 4u || order.find('a') != std::string::npos);
    EXPECT_EQ(drive.scheduler().stats().pages_used, (std::array<int32_t, kKvFamilies>{0, 0}));
  }

  int runs_ = 0;
};

TEST(ExecutorPipeline, NoInterleavingChangesAToken) {
  Interleavings all;
  all.Explore("", 7);
  EXPECT_GT(all.runs(), 1000);
}

}  // namespace
}  // namespace lapidary
