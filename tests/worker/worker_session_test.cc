// Whole workers in this process, each on its own thread, with the fake model: they dial a fake
// coordinator over loopback and meet each other in shared memory, as separate processes do.
#include "worker/worker_session.h"

#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/fake_coordinator.h"
#include "tests/worker/fake_model.h"

namespace lapidary {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;
namespace wire = cluster::v1;

absl::StatusOr<LoadedModel> LoadFake(const ModelRequest& request, Communicator& comm,
                                     const LoadProgress& progress) {
  progress(0, 100);
  LoadedModel model;
  model.runner = std::make_unique<FakeModelRunner>(comm, std::array<int32_t, kKvFamilies>{0, 0},
                                                   request.options.max_logits_rows);
  model.sampler = std::make_unique<FakeSampler>(comm);
  model.vocab = kFakeVocab;
  model.window = kFakeWindow;
  model.model_context = 300;
  progress(100, 100);
  return model;
}

wire::Assignment DefaultAssignment(const char* test) {
  wire::Assignment a;
  a.set_model_path("fake");
  a.set_compute("fp32");
  a.set_arith("auto");
  a.set_rendezvous(absl::StrFormat("session-%s-%d", test, getpid()));
  a.set_max_running(8);
  a.set_max_step_tokens(24);
  a.set_max_queued(5000);
  a.set_kv_bytes(20'000);
  return a;
}

// A descriptor that can be made readable, as the signal handler's is.
struct StopPipe {
  StopPipe() { EXPECT_EQ(pipe(ends), 0); }
  ~StopPipe() {
    close(ends[0]);
    close(ends[1]);
  }
  void Stop() { EXPECT_EQ(write(ends[1], "x", 1), 1); }
  int ends[2];
};

class Workers {
 public:
  Workers(int size, const std::string& address, const ModelLoader& load = LoadFake)
      : results_(size), stops_(size) {
    for (int r = 0; r < size; ++r) {
      threads_.emplace_back([this, r, address, load] {
        WorkerConfig config;
        config.coordinator = address;
        config.rank_hint = r;
        config.connect_timeout = absl::Seconds(20);
        WorkerSession session(config, load);
        results_[r] = session.Run(stops_[r].ends[0]);
      });
    }
  }
  ~Workers() { Join(); }
  void Stop() {
    for (StopPipe& stop : stops_) stop.Stop();
  }
  const std::vector<absl::Status>& Join() {
    for (std::thread& t : threads_) {
      if (t.joinable()) t.join();
    }
    return results_;
  }

 private:
  std::vector<absl::Status> results_;
  std::vector<StopPipe> stops_;
  std::vector<std::thread> threads_;
};

std::vector<TokenId> Prompt(int seed, int length) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back((seed * 31 + i * 7 + i * i) % kFakeVocab);
  return tokens;
}

wire::ConnectResponse Submit(uint64_t id, const std::vector<TokenId>& prompt, int max_tokens) {
  wire::ConnectResponse message;
  wire::Submit* submit = message.mutable_submit();
  submit->set_id(id);
  for (const TokenId t : prompt) submit->add_prompt(static_cast<uint32_t>(t));
  submit->mutable_sampling()->set_top_p(1);
  submit->mutable_sampling()->set_repetition_penalty(1);
  submit->mutable_sampling()->set_max_tokens(max_tokens);
  submit->mutable_sampling()->set_logprobs(-1);
  submit->mutable_sampling()->set_prompt_logprobs(-1);
  return message;
}

wire::ConnectResponse Drain() {
  wire::ConnectResponse message;
  message.mutable_drain();
  return message;
}

class WorkerSessionRanksTest : public testing::TestWithParam<int> {};

TEST_P(WorkerSessionRanksTest, ServesAndDrains) {
  const int size = GetParam();
  FakeCoordinator coordinator(size, DefaultAssignment("serve"));
  Workers workers(size, coordinator.address());
  ASSERT_TRUE(coordinator.AwaitReady());
  EXPECT_EQ(coordinator.progress_of(size - 1).done_bytes(), 100u);
  EXPECT_EQ(coordinator.ready_of(0).global_pages(), coordinator.ready_of(size - 1).global_pages());
  EXPECT_LE(coordinator.ready_of(0).kv_bytes(), 20'000u);

  for (int id = 1; id <= 10; ++id) coordinator.Send(0, Submit(id, Prompt(id, id * 11), 20));
  ASSERT_TRUE(coordinator.AwaitFinished(10));
  for (int id = 1; id <= 10; ++id) {
    const auto got = coordinator.outcome(id);
    EXPECT_THAT(got.tokens, ElementsAreArray(FakeReference::Continue(Prompt(id, id * 11), 20)));
    EXPECT_EQ(got.finish, wire::FINISH_LENGTH);
    EXPECT_EQ(got.finishes, 1);
  }
  coordinator.Send(0, Submit(11, Prompt(11, 5), 60));
  ASSERT_TRUE(coordinator.AwaitTokens(11, 1));
  coordinator.SendAll(Drain());
  for (const absl::Status& s : workers.Join()) EXPECT_TRUE(s.ok()) << s;
  EXPECT_EQ(coordinator.outcome(11).tokens.size(), 60u);
  EXPECT_EQ(coordinator.load().running(), 0u);
  EXPECT_GT(coordinator.load().decode_rows(), 100u);
}

INSTANTIATE_TEST_SUITE_P(Ranks, WorkerSessionRanksTest, testing::Values(1, 2, 4));

TEST(WorkerSession, AStopSignalDrains) {
  FakeCoordinator coordinator(2, DefaultAssignment("stop"));
  Workers workers(2, coordinator.address());
  ASSERT_TRUE(coordinator.AwaitReady());
  coordinator.Send(0, Submit(1, Prompt(1, 10), 80));
  ASSERT_TRUE(coordinator.AwaitTokens(1, 1));
  workers.Stop();
  for (const absl::Status& s : workers.Join()) EXPECT_TRUE(s.ok()) << s;
  EXPECT_EQ(coordinator.outcome(1).tokens.size(), 80u);
}

TEST(WorkerSession, AStopBeforeTheAssignmentIsNoError) {
  FakeCoordinator coordinator(2, DefaultAssignment("early"));
  Workers workers(1, coordinator.address());
  ASSERT_TRUE(coordinator.AwaitRegistered(1));
  workers.Stop();
  EXPECT_TRUE(workers.Join()[0].ok()) << workers.Join()[0];
}

TEST(WorkerSession, NoWorkerOutlivesTheCoordinator) {
  FakeCoordinator coordinator(2, DefaultAssignment("gone"));
  Workers workers(2, coordinator.address());
  ASSERT_TRUE(coordinator.AwaitReady());
  coordinator.Send(0, Submit(1, Prompt(1, 10), 250));
  ASSERT_TRUE(coordinator.AwaitTokens(1, 1));
  const std::string address = coordinator.address();
  coordinator.Stop();
  for (const absl::Status& s : workers.Join()) {
    EXPECT_FALSE(s.ok());
    EXPECT_THAT(s.message(), HasSubstr("the coordinator at " + address + " is gone"));
  }
}

TEST(WorkerSession, AnAbortEndsAllWithItsReason) {
  FakeCoordinator coordinator(2, DefaultAssignment("abort"));
  Workers workers(2, coordinator.address());
  ASSERT_TRUE(coordinator.AwaitReady());
  wire::ConnectResponse abort;
  abort.mutable_abort()->set_reason("rank 7 was lost");
  coordinator.SendAll(abort);
  for (const absl::Status& s : workers.Join()) {
    EXPECT_THAT(s.message(), HasSubstr("rank 7 was lost"));
    EXPECT_FALSE(s.ok());
  }
}

TEST(WorkerSession, ARankThatCanNotLoadEndsTheOthers) {
  FakeCoordinator coordinator(2, DefaultAssignment("load"));
  Workers workers(2, coordinator.address(),
                  [](const ModelRequest& request, Communicator& comm,
                     const LoadProgress& progress) -> absl::StatusOr<LoadedModel> {
                    if (request.rank.value == 1) {
                      return absl::NotFoundError("fake: no such checkpoint");
                    }
                    return LoadFake(request, comm, progress);
                  });
  ASSERT_TRUE(coordinator.AwaitFailure(1));
  EXPECT_EQ(coordinator.failure(1), "fake: no such checkpoint");
  const std::vector<absl::Status>& results = workers.Join();
  EXPECT_EQ(results[1].code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(results[0].ok());
  EXPECT_THAT(results[0].message(), HasSubstr("fake: no such checkpoint"));
}

TEST(WorkerSession, AllRanksLearnWhereTheirDevicesMeet) {
  FakeCoordinator coordinator(3, DefaultAssignment("meet"));
  absl::Mutex mu;
  std::vector<std::string> heard(3);
  Workers workers(3, coordinator.address(),
                  [&](const ModelRequest& request, Communicator& comm,
                      const LoadProgress& progress) -> absl::StatusOr<LoadedModel> {
                    const int rank = request.rank.value;
                    const auto id = request.share_communicator_id(rank == 0 ? "id of rank 0" : "");
                    if (!id.ok()) return id.status();
                    {
                      absl::MutexLock lock(&mu);
                      heard[rank] = *id;
                    }
                    return LoadFake(request, comm, progress);
                  });
  ASSERT_TRUE(coordinator.AwaitReady());
  workers.Stop();
  for (const absl::Status& s : workers.Join()) EXPECT_TRUE(s.ok()) << s;
  EXPECT_THAT(heard, testing::Each("id of rank 0"));
}

TEST(WorkerSession, ADeviceThatIsLostEndsTheGroup) {
  FakeCoordinator coordinator(2, DefaultAssignment("lost"));
  absl::Mutex mu;
  std::function<void(absl::Status)> lose;
  Workers workers(2, coordinator.address(),
                  [&](const ModelRequest& request, Communicator& comm,
                      const LoadProgress& progress) -> absl::StatusOr<LoadedModel> {
                    if (request.rank.value == 1) {
                      absl::MutexLock lock(&mu);
                      lose = request.on_lost;
                    }
                    return LoadFake(request, comm, progress);
                  });
  ASSERT_TRUE(coordinator.AwaitReady());
  {
    absl::MutexLock lock(&mu);
    lose(absl::UnavailableError("the fabric fell over"));
  }
  ASSERT_TRUE(coordinator.AwaitFailure(1));
  wire::ConnectResponse abort;  // as the real coordinator tells the others
  abort.mutable_abort()->set_reason(coordinator.failure(1));
  coordinator.SendAll(abort);
  for (const absl::Status& s : workers.Join()) {
    EXPECT_FALSE(s.ok());
    EXPECT_THAT(s.message(), HasSubstr("the fabric fell over"));
  }
}

TEST(WorkerSession, TooLittleKvMemoryIsSaid) {
  wire::Assignment assignment = DefaultAssignment("kv");
  assignment.set_kv_bytes(300);
  FakeCoordinator coordinator(2, assignment);
  Workers workers(2, coordinator.address());
  for (const absl::Status& s : workers.Join()) {
    EXPECT_EQ(s.code(), absl::StatusCode::kResourceExhausted) << s;
    EXPECT_THAT(s.message(), HasSubstr("rank 0: "));
  }
}

TEST(WorkerSession, BadRequestsAreAnsweredNotComputed) {
  FakeCoordinator coordinator(1, DefaultAssignment("bad"));
  Workers workers(1, coordinator.address());
  ASSERT_TRUE(coordinator.AwaitReady());
  coordinator.Send(0, Submit(1, {5, 97}, 5));
  wire::ConnectResponse beyond = Submit(2, {5}, 5);
  beyond.mutable_submit()->add_prompt(0xffffffff);
  coordinator.Send(0, beyond);
  wire::ConnectResponse heat = Submit(3, {5}, 5);
  heat.mutable_submit()->mutable_sampling()->set_temperature(std::nanf(""));
  coordinator.Send(0, heat);
  wire::ConnectResponse bias = Submit(4, {5}, 5);
  (*bias.mutable_submit()->mutable_sampling()->mutable_logit_bias())[97] = 1;
  coordinator.Send(0, bias);
  coordinator.Send(0, Submit(5, {}, 5));
  coordinator.Send(0, Submit(6, Prompt(1, 301), 5));
  coordinator.Send(0, Submit(7, {5}, 5));
  ASSERT_TRUE(coordinator.AwaitFinished(7));
  for (uint64_t id = 1; id <= 6; ++id) {
    EXPECT_EQ(coordinator.outcome(id).error_code, 3) << id;  // INVALID_ARGUMENT
    EXPECT_EQ(coordinator.outcome(id).finishes, 1);
  }
  EXPECT_THAT(coordinator.outcome(1).error_message, HasSubstr("token 97 at position 1"));
  EXPECT_EQ(coordinator.outcome(7).tokens.size(), 5u);
  coordinator.SendAll(Drain());
}

// More requests at once than the inbox holds: reading pauses and goes on.
TEST(WorkerSession, AFloodOfRequestsIsServedWhole) {
  FakeCoordinator coordinator(1, DefaultAssignment("flood"));
  Workers workers(1, coordinator.address());
  ASSERT_TRUE(coordinator.AwaitReady());
  constexpr int kRequests = 3000;
  for (int id = 1; id <= kRequests; ++id) coordinator.Send(0, Submit(id, {5}, 1));
  ASSERT_TRUE(coordinator.AwaitFinished(kRequests));
  const TokenId expected = FakeReference::Next({5});
  for (int id = 1; id <= kRequests; ++id) {
    EXPECT_THAT(coordinator.outcome(id).tokens, testing::ElementsAre(expected)) << id;
  }
  coordinator.SendAll(Drain());
}

TEST(WorkerSession, AnAbsentCoordinatorIsNamed) {
  std::string address;
  {
    FakeCoordinator coordinator(1, DefaultAssignment("absent"));
    address = coordinator.address();
  }
  WorkerConfig config;
  config.coordinator = address;
  config.connect_timeout = absl::Milliseconds(300);
  WorkerSession session(config, LoadFake);
  const absl::Status status = session.Run(-1);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "no coordinator answers at " + address + " (tried for 300ms)");
}

TEST(WorkerSession, ARefusedWorkerSaysWhy) {
  FakeCoordinator coordinator(1, DefaultAssignment("refused"));
  WorkerConfig config;
  config.coordinator = coordinator.address();
  config.rank_hint = 3;
  WorkerSession session(config, LoadFake);
  const absl::Status status = session.Run(-1);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("no such rank"));
}

// A coordinator that accepts the stream and then reads nothing.
TEST(GroupStreamClient, ACoordinatorThatDoesNotReadFailsTheSender) {
  class Deaf final : public wire::ClusterService::Service {
   public:
    grpc::Status Connect(
        grpc::ServerContext* context,
        grpc::ServerReaderWriter<wire::ConnectResponse, wire::ConnectRequest>*) override {
      absl::MutexLock lock(&mu);
      const auto over = [&] { return done || context->IsCancelled(); };
      while (!over()) mu.AwaitWithTimeout(absl::Condition(&done), absl::Milliseconds(20));
      return grpc::Status::OK;
    }
    absl::Mutex mu;
    bool done = false;
  };
  Deaf service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();

  GroupStreamClient::Options options;
  options.address = absl::StrFormat("127.0.0.1:%d", port);
  options.max_queued = 2;
  options.send_timeout = absl::Milliseconds(50);
  absl::Status ended = absl::UnknownError("not called");
  auto client =
      GroupStreamClient::Connect(options, wire::ConnectRequest(),
                                 {[](const wire::ConnectResponse&) { return true; },
                                  [&ended](const absl::Status& status) { ended = status; }});
  ASSERT_TRUE(client.ok()) << client.status();
  wire::ConnectRequest big;
  big.mutable_failure()->set_message(std::string(1 << 20, 'x'));
  absl::Status sent;
  for (int i = 0; i < 20 && sent.ok(); ++i) sent = (*client)->Send(big);
  EXPECT_EQ(sent.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(sent.message(), HasSubstr("none of 2 messages"));
  client->reset();  // ends the stream hard and waits for the end
  EXPECT_EQ(ended.code(), absl::StatusCode::kCancelled);
  absl::MutexLock lock(&service.mu);
  service.done = true;
}

}  // namespace
}  // namespace lapidary
