#include "tests/support/fake_worker.h"

#include <utility>

namespace lapidary {

namespace wire = cluster::v1;

namespace {
constexpr absl::Duration kPatience = absl::Seconds(10);
}  // namespace

FakeWorker::FakeWorker(const Options& options) : options_(options) {
  auto channel = grpc::CreateChannel("127.0.0.1:" + std::to_string(options.port),
                                     grpc::InsecureChannelCredentials());
  stub_ = wire::ClusterService::NewStub(channel);
  context_.set_wait_for_ready(true);
  stream_ = stub_->Connect(&context_);
  wire::ConnectRequest hello;
  wire::Register* me = hello.mutable_register_();
  me->set_worker(options.name);
  me->set_device("cpu");
  me->set_threads(1);
  me->set_host("testhost");
  if (options.rank) me->set_rank_hint(*options.rank);
  stream_->Write(hello);
  reader_ = std::thread([this] { Read(); });
}

FakeWorker::~FakeWorker() {
  Kill();
  if (reader_.joinable()) reader_.join();
}

void FakeWorker::Read() {
  wire::ConnectResponse message;
  while (stream_->Read(&message)) {
    bool assigned = false;
    {
      absl::MutexLock lock(&mu_);
      if (message.has_assignment()) {
        epoch_ = message.epoch();
        assignment_ = message.assignment();
        assigned = true;
      } else if (message.has_submit()) {
        submits_.push_back(message.submit());
      } else if (message.has_cancel()) {
        cancels_.push_back(message.cancel().id());
      } else if (message.has_pause()) {
        pause_changes_.emplace_back(message.pause().id(), true);
      } else if (message.has_resume()) {
        pause_changes_.emplace_back(message.resume().id(), false);
      } else if (message.has_abort()) {
        abort_ = message.abort().reason();
      } else if (message.has_drain()) {
        drain_ = true;
      }
    }
    if (assigned && options_.ready_at_once) SendReady();
  }
  const grpc::Status end = stream_->Finish();
  absl::MutexLock lock(&mu_);
  end_ = end;
}

template <class Predicate>
bool FakeWorker::Await(Predicate predicate) {
  return mu_.AwaitWithTimeout(absl::Condition(&predicate), kPatience);
}

std::optional<wire::Assignment> FakeWorker::AwaitAssignment() {
  absl::MutexLock lock(&mu_);
  Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return assignment_.has_value(); });
  return assignment_;
}

std::optional<wire::Submit> FakeWorker::AwaitSubmit() {
  absl::MutexLock lock(&mu_);
  if (!Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !submits_.empty(); })) return {};
  wire::Submit submit = std::move(submits_.front());
  submits_.pop_front();
  return submit;
}

std::optional<uint64_t> FakeWorker::AwaitCancel() {
  absl::MutexLock lock(&mu_);
  if (!Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !cancels_.empty(); })) return {};
  const uint64_t id = cancels_.front();
  cancels_.pop_front();
  return id;
}

std::optional<std::pair<uint64_t, bool>> FakeWorker::AwaitPauseChange() {
  absl::MutexLock lock(&mu_);
  if (!Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !pause_changes_.empty(); })) {
    return {};
  }
  const std::pair<uint64_t, bool> change = pause_changes_.front();
  pause_changes_.pop_front();
  return change;
}

std::optional<std::string> FakeWorker::AwaitAbort() {
  absl::MutexLock lock(&mu_);
  Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return abort_.has_value(); });
  return abort_;
}

bool FakeWorker::AwaitDrain() {
  absl::MutexLock lock(&mu_);
  return Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return drain_; });
}

std::optional<grpc::Status> FakeWorker::AwaitEnd() {
  absl::MutexLock lock(&mu_);
  Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return end_.has_value(); });
  return end_;
}

bool FakeWorker::Send(wire::ConnectRequest message) {
  {
    absl::MutexLock lock(&mu_);
    message.set_epoch(epoch_);
  }
  absl::MutexLock lock(&write_mu_);
  return stream_->Write(message);
}

bool FakeWorker::SendReady() {
  wire::ConnectRequest message;
  wire::Ready* ready = message.mutable_ready();
  ready->set_weights_bytes(1000);
  ready->set_kv_bytes(200);
  ready->set_workspace_bytes(30);
  ready->set_sliding_pages(40);
  ready->set_global_pages(80);
  ready->set_max_context_tokens(options_.max_context);
  ready->set_arith("test");
  ready->set_compute(options_.compute);
  return Send(message);
}

bool FakeWorker::SendEvents(const std::vector<wire::RequestEvent>& events) {
  wire::ConnectRequest message;
  wire::StepEvents* step = message.mutable_step_events();
  for (const wire::RequestEvent& event : events) *step->add_events() = event;
  return Send(message);
}

bool FakeWorker::SendStale(const wire::RequestEvent& event) {
  wire::ConnectRequest message;
  *message.mutable_step_events()->add_events() = event;
  {
    absl::MutexLock lock(&mu_);
    message.set_epoch(epoch_ - 1);
  }
  absl::MutexLock lock(&write_mu_);
  return stream_->Write(message);
}

bool FakeWorker::SendLoad(const wire::Load& load) {
  wire::ConnectRequest message;
  *message.mutable_load() = load;
  return Send(message);
}

void FakeWorker::Kill() { context_.TryCancel(); }

void FakeWorker::Leave() {
  absl::MutexLock lock(&write_mu_);
  stream_->WritesDone();
}

wire::RequestEvent MakeEvent(uint64_t id, const std::vector<int32_t>& tokens, wire::Finish finish) {
  wire::RequestEvent event;
  event.set_id(id);
  for (const int32_t token : tokens) {
    wire::Scored* scored = event.add_tokens();
    scored->set_id(static_cast<uint32_t>(token));
    scored->set_logprob(-0.5f);
  }
  event.set_finish(finish);
  return event;
}

}  // namespace lapidary
