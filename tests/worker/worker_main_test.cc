// Whole workers with real checkpoints, several ranks in this process: the tokens that transformers
// recorded, from scheduler to sampler, for any number of ranks. What the command line does with
// processes, in a form that the sanitizers can watch.
#include "worker/worker_main.h"

#include <unistd.h>

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/fake_coordinator.h"
#include "tests/worker/golden_model.h"

namespace lapidary {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;
namespace wire = cluster::v1;

struct Case {
  std::string model;
  int ranks;
};

class WorkerMainTest : public testing::TestWithParam<Case> {};

wire::Assignment AssignmentFor(const std::string& path) {
  wire::Assignment a;
  a.set_model_path(path);
  a.set_compute("fp32");
  a.set_arith("auto");
  a.set_rendezvous("main-test-" + std::to_string(getpid()));
  a.set_max_running(8);
  a.set_max_step_tokens(40);  // the longest prompt comes in four chunks, mixed with decoding
  a.set_max_queued(100);
  a.set_kv_bytes(8 << 20);
  return a;
}

std::vector<std::thread> StartWorkers(int ranks, const std::string& address,
                                      std::vector<absl::Status>* results) {
  results->resize(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([r, address, results] {
      WorkerConfig config;
      config.coordinator = address;
      config.rank_hint = r;
      config.metrics_listen = "";
      (*results)[static_cast<size_t>(r)] = RunWorker(config, -1);
    });
  }
  return threads;
}

TEST_P(WorkerMainTest, AllPromptsAtOnceGetTheRecordedTokens) {
  const absl::StatusOr<GoldenModel> golden = ReadGolden(GetParam().model);
  ASSERT_TRUE(golden.ok()) << golden.status();
  FakeCoordinator coordinator(GetParam().ranks, AssignmentFor(golden->path));
  std::vector<absl::Status> results;
  std::vector<std::thread> workers =
      StartWorkers(GetParam().ranks, coordinator.address(), &results);
  EXPECT_TRUE(coordinator.AwaitReady());
  for (size_t i = 0; i < golden->cases.size(); ++i) {
    const GoldenCase& c = golden->cases[i];
    wire::ConnectResponse message;
    wire::Submit* submit = message.mutable_submit();
    submit->set_id(i);
    for (const TokenId t : c.prompt) submit->add_prompt(static_cast<uint32_t>(t));
    wire::Sampling* sampling = submit->mutable_sampling();
    sampling->set_top_p(1);
    sampling->set_repetition_penalty(1);
    sampling->set_max_tokens(static_cast<int>(c.continuation.size()));
    sampling->set_logprobs(-1);
    sampling->set_prompt_logprobs(-1);
    coordinator.Send(0, message);
  }
  EXPECT_TRUE(coordinator.AwaitFinished(static_cast<int>(golden->cases.size())));
  for (size_t i = 0; i < golden->cases.size(); ++i) {
    EXPECT_THAT(coordinator.outcome(i).tokens, ElementsAreArray(golden->cases[i].continuation))
        << golden->cases[i].name;
  }
  wire::ConnectResponse drain;
  drain.mutable_drain();
  coordinator.SendAll(drain);
  for (std::thread& t : workers) t.join();
  for (const absl::Status& s : results) EXPECT_TRUE(s.ok()) << s;
}

TEST_P(WorkerMainTest, PausesChangeNoToken) {
  const absl::StatusOr<GoldenModel> golden = ReadGolden(GetParam().model);
  ASSERT_TRUE(golden.ok()) << golden.status();
  FakeCoordinator coordinator(GetParam().ranks, AssignmentFor(golden->path));
  std::vector<absl::Status> results;
  std::vector<std::thread> workers =
      StartWorkers(GetParam().ranks, coordinator.address(), &results);
  EXPECT_TRUE(coordinator.AwaitReady());
  constexpr int kTokens = 200;
  const auto submit = [&](uint64_t id, int max_tokens) {
    wire::ConnectResponse message;
    wire::Submit* request = message.mutable_submit();
    request->set_id(id);
    for (const TokenId t : golden->cases[0].prompt) request->add_prompt(static_cast<uint32_t>(t));
    wire::Sampling* sampling = request->mutable_sampling();
    sampling->set_temperature(0.9f);
    sampling->set_seed(7);
    sampling->set_top_p(1);
    sampling->set_repetition_penalty(1.1f);
    sampling->set_max_tokens(max_tokens);
    sampling->set_logprobs(-1);
    sampling->set_prompt_logprobs(-1);
    coordinator.Send(0, message);
  };
  const auto pause = [&](uint64_t id) {
    wire::ConnectResponse message;
    message.mutable_pause()->set_id(id);
    coordinator.Send(0, message);
  };
  const auto resume = [&](uint64_t id) {
    wire::ConnectResponse message;
    message.mutable_resume()->set_id(id);
    coordinator.Send(0, message);
  };
  submit(1, kTokens);
  EXPECT_TRUE(coordinator.AwaitFinished(1));
  submit(2, kTokens);
  pause(2);
  submit(3, 4);
  EXPECT_TRUE(coordinator.AwaitFinished(2));
  EXPECT_EQ(coordinator.outcome(3).finishes, 1) << "blocked by a paused request";
  EXPECT_LT(coordinator.outcome(2).tokens.size(), size_t{kTokens});
  resume(2);
  for (const size_t at : {20, 60, 100}) {
    EXPECT_TRUE(coordinator.AwaitTokens(2, at));
    pause(2);
    resume(2);
  }
  EXPECT_TRUE(coordinator.AwaitFinished(3));
  EXPECT_EQ(coordinator.outcome(1).tokens.size(), size_t{kTokens});
  EXPECT_THAT(coordinator.outcome(2).tokens, ElementsAreArray(coordinator.outcome(1).tokens));
  EXPECT_EQ(coordinator.outcome(2).finishes, 1);
  wire::ConnectResponse drain;
  drain.mutable_drain();
  coordinator.SendAll(drain);
  for (std::thread& t : workers) t.join();
  for (const absl::Status& s : results) EXPECT_TRUE(s.ok()) << s;
}

INSTANTIATE_TEST_SUITE_P(Models, WorkerMainTest,
                         testing::Values(Case{"dense-awkward", 1}, Case{"dense-awkward", 2},
                                         Case{"moe-awkward", 2}, Case{"ple-awkward", 2},
                                         Case{"gemma3-awkward", 4}),
                         [](const testing::TestParamInfo<Case>& info) {
                           std::string name = info.param.model + "_tp";
                           name[name.find('-')] = '_';
                           return name + std::to_string(info.param.ranks);
                         });

TEST(WorkerMain, AnAbsentCheckpointIsTheRanksFailure) {
  FakeCoordinator coordinator(2, AssignmentFor("tests/golden/models/no-such-model"));
  std::vector<absl::Status> results;
  std::vector<std::thread> workers = StartWorkers(2, coordinator.address(), &results);
  for (std::thread& t : workers) t.join();
  for (const absl::Status& s : results) {
    EXPECT_FALSE(s.ok());
    EXPECT_THAT(s.message(), HasSubstr("no-such-model"));
  }
}

TEST(WorkerMain, AnUnknownArithmeticIsRefusedOnAllRanks) {
  wire::Assignment assignment = AssignmentFor("tests/golden/models/dense-gpu");
  assignment.set_arith("abacus");
  FakeCoordinator coordinator(2, assignment);
  std::vector<absl::Status> results;
  std::vector<std::thread> workers = StartWorkers(2, coordinator.address(), &results);
  for (std::thread& t : workers) t.join();
  for (const absl::Status& s : results) {
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << s;
    EXPECT_THAT(s.message(), HasSubstr("abacus"));
  }
}

TEST(WorkerMain, BadConfigurationIsRefused) {
  WorkerConfig config;
  config.coordinator = "127.0.0.1:1";
  config.threads = 2;
  config.cpus = {0};
  EXPECT_THAT(RunWorker(config, -1).message(), HasSubstr("1 CPUs for 2 threads"));
  config.cpus = {};
  config.threads = 0;
  EXPECT_EQ(RunWorker(config, -1).code(), absl::StatusCode::kInvalidArgument);
  config.threads = 1;
  config.parent_pid = getpid();  // not our parent: it must have died
  EXPECT_EQ(RunWorker(config, -1).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace lapidary
