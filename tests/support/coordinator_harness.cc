#include "tests/support/coordinator_harness.h"

#include <utility>

#include "absl/time/clock.h"
#include "tests/support/http_fetch.h"

namespace lapidary {

std::string Reply::Text(uint32_t choice) const {
  std::string text;
  for (const auto& e : events) {
    if (e.has_delta() && e.delta().choice() == choice) text += e.delta().text();
  }
  return text;
}

std::vector<uint32_t> Reply::Ids(uint32_t choice) const {
  std::vector<uint32_t> ids;
  for (const auto& e : events) {
    if (!e.has_delta() || e.delta().choice() != choice) continue;
    ids.insert(ids.end(), e.delta().token_ids().begin(), e.delta().token_ids().end());
  }
  return ids;
}

std::optional<v1::ChoiceFinished> Reply::Finished(uint32_t choice) const {
  std::optional<v1::ChoiceFinished> found;
  for (const auto& e : events) {
    if (!e.has_choice_finished() || e.choice_finished().choice() != choice) continue;
    EXPECT_FALSE(found.has_value()) << "choice " << choice << " finished twice";
    found = e.choice_finished();
  }
  return found;
}

std::optional<v1::Usage> Reply::Usage() const {
  if (events.empty() || !events.back().has_usage()) return std::nullopt;
  return events.back().usage();
}

Call::Call(v1::LapidaryService::Stub& stub, v1::GenerateRequest request, absl::Duration deadline,
           const std::string& traceparent) {
  context_.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
  if (!traceparent.empty()) context_.AddMetadata("traceparent", traceparent);
  thread_ = std::thread([this, &stub, request = std::move(request)] {
    const auto reader = stub.Generate(&context_, request);
    for (v1::GenerateResponse event; reader->Read(&event);) reply_.events.push_back(event);
    reply_.status = reader->Finish();
  });
}

Call::~Call() {
  if (!thread_.joinable()) return;
  Cancel();
  thread_.join();
}

const Reply& Call::Wait() {
  if (thread_.joinable()) thread_.join();
  return reply_;
}

CoordinatorConfig CoordinatorTest::TestConfig(const std::string& model) {
  CoordinatorConfig config;
  config.listen = config.worker_listen = config.metrics_listen = "127.0.0.1:0";
  config.model_path = model;
  config.served_model_name = "tiny";
  config.compute = "fp32";
  config.drain_timeout = absl::Seconds(10);
  config.retry_delay = absl::Milliseconds(250);
  return config;
}

void CoordinatorTest::StartServer(const CoordinatorConfig& config) {
  auto server = CoordinatorServer::Start(config);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                 grpc::InsecureChannelCredentials());
  stub_ = v1::LapidaryService::NewStub(channel_);
  auto tokenizer = Tokenizer::Load(config.model_path);
  if (tokenizer.ok()) tokenizer_ = *std::move(tokenizer);
}

void CoordinatorTest::StartWorkers(int count, uint32_t max_context) {
  for (int rank = 0; rank < count; ++rank) {
    FakeWorker::Options options;
    options.port = server_->worker_port();
    options.rank = static_cast<uint32_t>(rank);
    options.name = "testhost/" + std::to_string(100 + rank);
    options.max_context = max_context;
    workers_.push_back(std::make_unique<FakeWorker>(options));
  }
  // WaitUntilReady would report the epoch before, if one has failed.
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (!server_->group_state().ready() && absl::Now() < give_up) std::this_thread::yield();
  ASSERT_TRUE(server_->group_state().ready()) << server_->group_state().Describe();
}

std::vector<TokenId> CoordinatorTest::Encode(const std::string& text) const {
  std::vector<TokenId> ids;
  tokenizer_->Encode(text, SpecialTokens::kAsText, &ids);
  return ids;
}

double CoordinatorTest::Metric(const std::string& sample) const {
  const std::string page = "\n" + HttpGet(server_->metrics_port(), "/metrics").body;
  const size_t at = page.find("\n" + sample + " ");
  if (at == std::string::npos) return -1;
  return std::stod(page.substr(at + sample.size() + 2));
}

bool CoordinatorTest::AwaitMetric(const std::string& sample, double value) const {
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (Metric(sample) != value) {
    if (absl::Now() > give_up) return false;
  }
  return true;
}

v1::GenerateRequest IdsRequest(const std::vector<uint32_t>& ids, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.mutable_stopping()->set_max_tokens(max_tokens);
  return request;
}

v1::GenerateRequest TextRequest(const std::string& text, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_stopping()->set_max_tokens(max_tokens);
  return request;
}

}  // namespace lapidary
