// A coordinator's life: starting, waiting for workers, losing them, draining; and what stands
// beside Generate: model RPCs, health, reflection, metrics and probes.
#include "coordinator/server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <thread>

#include "absl/time/clock.h"
#include "common/error_details.h"
#include "common/grpc_status.h"
#include "common/http_server.h"
#include "tests/support/coordinator_harness.h"
#include "tests/support/http_fetch.h"
#include "tests/support/raw_rpc.h"
#include "tests/support/tcp_relay.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ServerTest : public CoordinatorTest {
 protected:
  // grpc.health.v1 Check: "SERVING", "NOT_SERVING", or the error's message.
  std::string Health(const std::string& service) {
    // HealthCheckRequest{1: service}; HealthCheckResponse{1: status}, 1 SERVING, 2 NOT_SERVING.
    const auto reply = UnaryRpc(channel_, "/grpc.health.v1.Health/Check", BytesField(1, service));
    if (!reply.ok()) return std::string(reply.status().message());
    return *reply == std::string("\x08\x01", 2)   ? "SERVING"
           : *reply == std::string("\x08\x02", 2) ? "NOT_SERVING"
                                                  : "unreadable";
  }
  bool AwaitHealth(const std::string& service, const std::string& want) {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (Health(service) != want) {
      if (absl::Now() > give_up) return false;
      std::this_thread::yield();
    }
    return true;
  }
};

TEST_F(ServerTest, WithoutWorkersItSaysHowManyAreMissing) {
  CoordinatorConfig config = TestConfig();
  config.tensor_parallel = 2;
  config.worker_connect_timeout = absl::Milliseconds(200);
  StartServer(config);
  FakeWorker::Options options;
  options.port = server_->worker_port();
  FakeWorker only(options);
  // The wait ends when the time is up, with the numbers.
  const absl::Status waited = server_->WaitUntilReady(absl::Now() + absl::Seconds(10));
  EXPECT_EQ(waited.code(), absl::StatusCode::kUnavailable) << waited;
  EXPECT_THAT(std::string(waited.message()), HasSubstr("1 of 2 workers connected"));
  EXPECT_THAT(std::string(waited.message()), HasSubstr("200ms"));
  const absl::Status status = FromGrpcStatus(Generate(IdsRequest({5}))->Wait().status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 of 2 workers connected"));
  EXPECT_EQ(RetryAfter(status), absl::Milliseconds(250));
  EXPECT_EQ(Reason(status), "NO_GROUP");
  const HttpReply ready = HttpGet(server_->metrics_port(), "/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_THAT(ready.body, HasSubstr("1 of 2 workers connected"));
  EXPECT_EQ(HttpGet(server_->metrics_port(), "/livez").status, 200);
}

TEST_F(ServerTest, HintedRanksAndTheRestAreAssigned) {
  CoordinatorConfig config = TestConfig();
  config.tensor_parallel = 3;
  config.max_running = 7;
  config.kv_bytes = 12345;
  StartServer(config);
  FakeWorker::Options options;
  options.port = server_->worker_port();
  options.rank = 1;
  FakeWorker a(options);
  ASSERT_TRUE(server_->WaitUntilReady(absl::Now()).code() == absl::StatusCode::kDeadlineExceeded);
  options.rank = 0;
  FakeWorker b(options);
  options.rank.reset();
  FakeWorker c(options);
  const auto at_a = a.AwaitAssignment(), at_b = b.AwaitAssignment(), at_c = c.AwaitAssignment();
  ASSERT_TRUE(at_a && at_b && at_c);
  EXPECT_EQ(at_a->rank(), 1u);
  EXPECT_EQ(at_b->rank(), 0u);
  EXPECT_EQ(at_c->rank(), 2u);
  EXPECT_EQ(at_a->size(), 3u);
  EXPECT_EQ(at_a->rendezvous(), at_c->rendezvous());
  EXPECT_FALSE(at_a->rendezvous().empty());
  EXPECT_EQ(at_a->max_running(), 7u);
  EXPECT_EQ(at_a->kv_bytes(), 12345u);
  EXPECT_EQ(at_a->compute(), "fp32");
  ASSERT_TRUE(server_->WaitUntilReady(absl::Now() + absl::Seconds(10)).ok());
  const GroupState state = server_->group_state();
  EXPECT_EQ(state.max_context, 64);
  EXPECT_EQ(state.global_pages, 80);
  // One more than wanted, a rank that is taken, and one that does not exist.
  options.rank.reset();
  EXPECT_EQ(FakeWorker(options).AwaitEnd()->error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  options.rank = 1;
  EXPECT_EQ(FakeWorker(options).AwaitEnd()->error_code(), grpc::StatusCode::ALREADY_EXISTS);
  options.rank = 3;
  EXPECT_EQ(FakeWorker(options).AwaitEnd()->error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServerTest, ALostRankEndsTheEpochAndANewGroupServes) {
  CoordinatorConfig config = TestConfig();
  config.tensor_parallel = 2;
  StartAll(config);
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  leader().SendEvents({MakeEvent(submit->id(), {10})});
  const std::string tokens = "lapidary_generation_tokens_total{model_name=\"tiny\"}";
  ASSERT_TRUE(AwaitMetric(tokens, 1));
  workers_[1]->Kill();
  const Reply& reply = call->Wait();
  const absl::Status status = FromGrpcStatus(reply.status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (testhost/101)"));
  EXPECT_EQ(Reason(status), "GROUP_LOST");
  EXPECT_TRUE(RetryAfter(status));
  EXPECT_THAT(reply.Ids(), ElementsAre(10));  // what was there is delivered
  const auto abort = leader().AwaitAbort();
  ASSERT_TRUE(abort);
  EXPECT_THAT(*abort, HasSubstr("rank 1"));
  EXPECT_TRUE(leader().AwaitEnd());
  EXPECT_TRUE(AwaitHealth("readiness", "NOT_SERVING"));
  const absl::Status meanwhile = FromGrpcStatus(Generate(IdsRequest({5}))->Wait().status);
  EXPECT_THAT(std::string(meanwhile.message()), HasSubstr("0 of 2 workers connected; rank 1"));

  workers_.clear();
  StartWorkers(2);
  EXPECT_EQ(server_->group_state().epoch, 2u);
  auto next = Generate(IdsRequest({5}));
  const auto again = leader().AwaitSubmit();
  ASSERT_TRUE(again);
  leader().SendEvents({MakeEvent(again->id(), {11}, wire::FINISH_LENGTH)});
  EXPECT_TRUE(next->Wait().status.ok());
}

TEST_F(ServerTest, ASilentRankIsALostRank) {
  CoordinatorConfig config = TestConfig();
  config.tensor_parallel = 2;
  config.worker_keepalive = absl::Seconds(1);
  StartServer(config);
  TcpRelay relay(server_->worker_port());
  FakeWorker::Options options;
  options.port = server_->worker_port();
  options.rank = 0;
  FakeWorker leader(options);
  options.port = relay.port();
  options.rank = 1;
  FakeWorker silent(options);
  ASSERT_TRUE(server_->WaitUntilReady(absl::Now() + absl::Seconds(10)).ok());
  auto call = Generate(IdsRequest({5}));
  ASSERT_TRUE(leader.AwaitSubmit());
  relay.Freeze();  // as after SIGSTOP: the connection stays open
  const absl::Status status = FromGrpcStatus(call->Wait().status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  EXPECT_TRUE(leader.AwaitAbort());
}

TEST_F(ServerTest, ARankThatGivesUpSaysWhy) {
  CoordinatorConfig config = TestConfig();
  StartServer(config);
  FakeWorker::Options options;
  options.port = server_->worker_port();
  options.ready_at_once = false;
  FakeWorker worker(options);
  ASSERT_TRUE(worker.AwaitAssignment());
  wire::ConnectRequest message;
  message.mutable_failure()->set_message("tensor layers.0.mlp.up_proj.weight is missing");
  worker.Send(message);
  const absl::Status waited = server_->WaitUntilReady(absl::Now() + absl::Seconds(10));
  EXPECT_EQ(waited.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(waited.message()), HasSubstr("up_proj.weight is missing"));
}

TEST_F(ServerTest, LoadingShowsProgressAndIsNotReady) {
  StartServer(TestConfig());
  FakeWorker::Options options;
  options.port = server_->worker_port();
  options.ready_at_once = false;
  FakeWorker worker(options);
  ASSERT_TRUE(worker.AwaitAssignment());
  wire::ConnectRequest message;
  message.mutable_progress()->set_done_bytes(5 << 20);
  message.mutable_progress()->set_total_bytes(9 << 20);
  worker.Send(message);
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (server_->group_state().loaded_bytes == 0 && absl::Now() < give_up) {
    std::this_thread::yield();
  }
  const HttpReply ready = HttpGet(server_->metrics_port(), "/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_THAT(ready.body, HasSubstr("loading: 5 of 9 MB"));
  EXPECT_EQ(Health("readiness"), "NOT_SERVING");
  EXPECT_EQ(Health("startup"), "NOT_SERVING");
  worker.SendReady();
  ASSERT_TRUE(server_->WaitUntilReady(absl::Now() + absl::Seconds(10)).ok());
  EXPECT_EQ(HttpGet(server_->metrics_port(), "/readyz").status, 200);
  EXPECT_TRUE(AwaitHealth("startup", "SERVING"));
}

TEST_F(ServerTest, HealthFollowsTheGroup) {
  StartServer(TestConfig());
  for (const char* name : {"", "readiness", "lapidary.v1.LapidaryService"}) {
    EXPECT_EQ(Health(name), "NOT_SERVING") << name;
  }
  EXPECT_EQ(Health("liveness"), "SERVING");
  EXPECT_NE(Health("nonsense"), "SERVING");
  StartWorkers(1);
  for (const char* name : {"", "readiness", "lapidary.v1.LapidaryService"}) {
    EXPECT_TRUE(AwaitHealth(name, "SERVING")) << name;
  }
  leader().Kill();
  EXPECT_TRUE(AwaitHealth("readiness", "NOT_SERVING"));
  EXPECT_EQ(Health("liveness"), "SERVING");
}

TEST_F(ServerTest, DrainingFinishesStreamsAndTakesNoNewOnes) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  std::thread drain([this] { server_->Drain(); });
  EXPECT_TRUE(AwaitHealth("readiness", "NOT_SERVING"));
  const absl::Status refused = FromGrpcStatus(Generate(IdsRequest({5}))->Wait().status);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  EXPECT_EQ(Reason(refused), "DRAINING");
  EXPECT_TRUE(RetryAfter(refused));
  EXPECT_EQ(HttpGet(server_->metrics_port(), "/readyz").body, "draining\n");
  EXPECT_EQ(Metric("lapidary_draining{model_name=\"tiny\"}"), 1);
  leader().SendEvents({MakeEvent(submit->id(), {10, 11}, wire::FINISH_LENGTH)});
  EXPECT_TRUE(call->Wait().status.ok());
  EXPECT_THAT(call->Wait().Ids(), ElementsAre(10, 11));
  EXPECT_TRUE(leader().AwaitDrain());
  leader().Leave();
  drain.join();
  EXPECT_EQ(HttpGet(server_->metrics_port(), "/livez").status, 0);  // closed
}

TEST_F(ServerTest, TheDrainTimeoutCutsWhatIsLeft) {
  CoordinatorConfig config = TestConfig();
  config.drain_timeout = absl::Milliseconds(100);
  StartAll(config);
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  std::thread drain([this] { server_->Drain(); });
  EXPECT_EQ(leader().AwaitCancel(), submit->id());
  const absl::Status status = FromGrpcStatus(call->Wait().status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(leader().AwaitDrain());
  leader().Leave();
  drain.join();
}

TEST_F(ServerTest, DestroyingItEndsStreamsAndWorkers) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5}));
  ASSERT_TRUE(leader().AwaitSubmit());
  server_.reset();
  EXPECT_EQ(call->Wait().status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(leader().AwaitAbort());
}

TEST_F(ServerTest, AStalePushOfAnotherEpochIsRefused) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  leader().SendStale(MakeEvent(submit->id(), {99}, wire::FINISH_LENGTH));
  leader().SendEvents({MakeEvent(submit->id(), {10}, wire::FINISH_LENGTH)});
  EXPECT_THAT(call->Wait().Ids(), ElementsAre(10));
}

TEST_F(ServerTest, TheFirstMessageMustBeRegister) {
  StartServer(TestConfig());
  auto channel = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->worker_port()),
                                     grpc::InsecureChannelCredentials());
  const auto stub = wire::ClusterService::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->Connect(&context);
  wire::ConnectRequest message;
  message.mutable_load();
  stream->Write(message);
  wire::ConnectResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServerTest, ReflectionListsTheServicesUnlessTurnedOff) {
  // ServerReflectionRequest{7: list_services}.
  const std::string list = BytesField(7, "*");
  const std::string path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  StartServer(TestConfig());
  const auto reply = BidiRpc(channel_, path, list);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_THAT(*reply, HasSubstr("lapidary.v1.LapidaryService"));
  EXPECT_THAT(*reply, HasSubstr("grpc.health.v1.Health"));
  // ServerReflectionRequest{4: file_containing_symbol}: every listed service is described.
  for (const char* name : {"grpc.health.v1.Health", "lapidary.v1.LapidaryService"}) {
    const auto file = BidiRpc(channel_, path, BytesField(4, name));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_THAT(*file, HasSubstr(".proto")) << name;
  }
  server_.reset();
  CoordinatorConfig config = TestConfig();
  config.reflection = false;
  StartServer(config);
  const auto off = BidiRpc(channel_, path, list);
  EXPECT_EQ(off.status().code(), absl::StatusCode::kUnimplemented) << off.status();
}

TEST_F(ServerTest, AutomaticComputeIsTheWorkersChoice) {
  CoordinatorConfig config = TestConfig();
  config.compute = "auto";
  StartAll(config);
  EXPECT_EQ(leader().AwaitAssignment()->compute(), "auto");
  grpc::ClientContext context;
  v1::ListModelsResponse list;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &list).ok());
  EXPECT_EQ(list.models(0).compute(), "fp32");  // as the worker said when it was ready
}

TEST_F(ServerTest, ModelsAreDescribed) {
  StartAll(TestConfig());
  grpc::ClientContext list_context, get_context, bad_context;
  v1::ListModelsResponse list;
  ASSERT_TRUE(stub_->ListModels(&list_context, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  const v1::Model& model = list.models(0);
  EXPECT_EQ(model.name(), "tiny");
  EXPECT_EQ(model.vocabulary_size(), 512u);
  EXPECT_EQ(model.max_context_tokens(), 64u);
  EXPECT_EQ(model.compute(), "fp32");
  EXPECT_EQ(model.chat_format(), "gemma4");
  EXPECT_TRUE(model.ready());
  EXPECT_GT(model.parameter_count(), 0u);
  v1::GetModelResponse got;
  ASSERT_TRUE(stub_->GetModel(&get_context, {}, &got).ok());
  EXPECT_EQ(got.model().SerializeAsString(), model.SerializeAsString());
  v1::GetModelRequest other;
  other.set_model("other");
  EXPECT_EQ(stub_->GetModel(&bad_context, other, &got).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServerTest, TokenizeAndBack) {
  StartServer(TestConfig());
  v1::TokenizeRequest request;
  request.set_text("the cat");
  request.set_add_bos(true);
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &tokens).ok());
  }
  EXPECT_EQ(tokens.token_ids(0), 2u);
  EXPECT_EQ(tokens.tokens(0), "<bos>");
  EXPECT_EQ(tokens.tokens_size(), tokens.token_ids_size());
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Detokenize(&context, back, &text).ok());
  }
  EXPECT_EQ(text.text(), "the cat");
  back.add_token_ids(1 << 20);
  grpc::ClientContext context;
  const absl::Status bad = FromGrpcStatus(stub_->Detokenize(&context, back, &text));
  EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(BadFields(bad).size(), 1u);
  EXPECT_THAT(BadFields(bad)[0].field, HasSubstr("token_ids["));
  v1::TokenizeRequest chat;
  v1::ChatMessage* message = chat.mutable_chat()->add_messages();
  message->set_role("user");
  message->add_content()->set_text("Hi");
  grpc::ClientContext chat_context;
  ASSERT_TRUE(stub_->Tokenize(&chat_context, chat, &tokens).ok());
  EXPECT_THAT(tokens.rendered(), HasSubstr("<|turn>user\nHi<turn|>"));
}

TEST_F(ServerTest, APortInUseIsAClearError) {
  StartServer(TestConfig());
  CoordinatorConfig config = TestConfig();
  config.listen = "127.0.0.1:" + std::to_string(server_->port());
  const auto second = CoordinatorServer::Start(config);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(config.listen));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("Address already in use"));
  config = TestConfig();
  config.worker_listen = "127.0.0.1:" + std::to_string(server_->worker_port());
  EXPECT_FALSE(CoordinatorServer::Start(config).ok());
  config = TestConfig();
  config.metrics_listen = "127.0.0.1:" + std::to_string(server_->metrics_port());
  EXPECT_FALSE(CoordinatorServer::Start(config).ok());
  config = TestConfig();
  config.model_path = "tests/golden/models/absent";
  EXPECT_EQ(CoordinatorServer::Start(config).status().code(), absl::StatusCode::kNotFound);
}

// Every sample of the text format, by name with labels.
std::map<std::string, double> ParseMetrics(const std::string& page) {
  std::map<std::string, double> samples;
  std::map<std::string, std::string> types;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line.compare(0, 7, "# HELP ") == 0) continue;
    if (line.compare(0, 7, "# TYPE ") == 0) {
      const size_t space = line.rfind(' ');
      EXPECT_TRUE(types.emplace(line.substr(7, space - 7), line.substr(space + 1)).second)
          << "two families: " << line;
      continue;
    }
    const size_t space = line.rfind(' ');
    EXPECT_NE(space, std::string::npos) << line;
    size_t parsed = 0;
    const double value = std::stod(line.substr(space + 1), &parsed);
    EXPECT_EQ(parsed, line.size() - space - 1) << line;
    EXPECT_TRUE(samples.emplace(line.substr(0, space), value).second) << "twice: " << line;
  }
  return samples;
}

TEST_F(ServerTest, MetricsPageIsReadableAndTrue) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5, 6}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  wire::RequestEvent first = MakeEvent(submit->id(), {10});
  first.set_queue_seconds(0.75);
  leader().SendEvents({first});
  leader().SendEvents({MakeEvent(submit->id(), {11}, wire::FINISH_LENGTH)});
  ASSERT_TRUE(call->Wait().status.ok());
  wire::Load load;
  load.set_waiting(3);
  load.set_running(4);
  load.set_waiting_tokens(500);
  load.set_sliding_pages_used(10);
  load.set_global_pages_used(60);
  load.set_preemptions(2);
  load.set_steps(8);
  load.set_decode_rows(40);
  leader().SendLoad(load);
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (server_->group_state().waiting != 3 && absl::Now() < give_up) std::this_thread::yield();

  const HttpReply reply = HttpGet(server_->metrics_port(), "/metrics");
  ASSERT_EQ(reply.status, 200);
  EXPECT_THAT(reply.head, HasSubstr("text/plain; version=0.0.4"));
  const std::map<std::string, double> samples = ParseMetrics(reply.body);
  const auto value = [&](const std::string& name) {
    const auto found = samples.find(name);
    EXPECT_NE(found, samples.end()) << name << " is missing";
    return found == samples.end() ? -1 : found->second;
  };
  const std::string ours = "{model_name=\"tiny\"}";
  const std::string theirs = "{engine=\"0\",model_name=\"tiny\"}";
  EXPECT_EQ(value("lapidary_requests_waiting" + ours), 3);
  EXPECT_EQ(value("lapidary_requests_running" + ours), 4);
  EXPECT_EQ(value("lapidary_queued_prompt_tokens" + ours), 500);
  EXPECT_EQ(value("lapidary_kv_usage_ratio{family=\"sliding\",model_name=\"tiny\"}"), 0.25);
  EXPECT_EQ(value("lapidary_kv_usage_ratio{family=\"global\",model_name=\"tiny\"}"), 0.75);
  EXPECT_EQ(value("lapidary_requests_total{finish=\"length\",model_name=\"tiny\"}"), 1);
  EXPECT_EQ(value("lapidary_prompt_tokens_total" + ours), 2);
  EXPECT_EQ(value("lapidary_generation_tokens_total" + ours), 2);
  EXPECT_EQ(value("lapidary_time_to_first_token_seconds_count" + ours), 1);
  EXPECT_EQ(value("lapidary_inter_token_latency_seconds_count" + ours), 1);
  EXPECT_EQ(value("lapidary_request_seconds_count" + ours), 1);
  EXPECT_EQ(value("lapidary_queue_seconds_sum" + ours), 0.75);
  EXPECT_EQ(value("lapidary_preemptions_total" + ours), 2);
  EXPECT_EQ(value("lapidary_decode_rows_total" + ours), 40);
  EXPECT_EQ(value("lapidary_worker_up{model_name=\"tiny\",rank=\"0\"}"), 1);
  EXPECT_EQ(value("lapidary_draining" + ours), 0);
  EXPECT_GT(value("process_resident_memory_bytes"), 1e6);
  // What routers read: present, and exactly one series each.
  EXPECT_EQ(value("vllm:num_requests_waiting" + theirs), 3);
  EXPECT_EQ(value("vllm:num_requests_running" + theirs), 4);
  EXPECT_EQ(value("vllm:kv_cache_usage_perc" + theirs), 0.75);
  EXPECT_EQ(value("vllm:prompt_tokens_total" + theirs), 2);
  EXPECT_EQ(value("vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"80\"}"),
            1);
  for (const char* name : {"vllm:num_requests_waiting{", "vllm:num_requests_running{",
                           "vllm:kv_cache_usage_perc{", "vllm:cache_config_info{"}) {
    EXPECT_EQ(std::count_if(samples.begin(), samples.end(),
                            [&](const auto& s) { return s.first.rfind(name, 0) == 0; }),
              1)
        << name;
  }
}

TEST_F(ServerTest, CompatMetricsExistBeforeTheModelAndCanBeTurnedOff) {
  StartServer(TestConfig());
  std::string page = HttpGet(server_->metrics_port(), "/metrics").body;
  EXPECT_THAT(page, HasSubstr("vllm:num_requests_waiting"));
  EXPECT_THAT(page, HasSubstr("vllm:cache_config_info"));
  server_.reset();
  CoordinatorConfig config = TestConfig();
  config.compat_metrics = false;
  StartServer(config);
  page = HttpGet(server_->metrics_port(), "/metrics").body;
  EXPECT_EQ(page.find("vllm:"), std::string::npos);
  EXPECT_THAT(page, HasSubstr("lapidary_requests_waiting"));
}

}  // namespace
}  // namespace lapidary
