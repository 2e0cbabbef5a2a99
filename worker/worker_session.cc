#include "worker/worker_session.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/scheduler.h"
#include "worker/cluster_messages.h"
#include "worker/executor.h"
#include "worker/kv_agreement.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;

constexpr size_t kInboxCapacity = 1024;
constexpr absl::Duration kGoodbyeTimeout = absl::Seconds(5);
constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);
constexpr absl::Duration kLoadInterval = absl::Milliseconds(20);

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

// The same for all processes that can share memory by name, as far as one can tell.
std::string HostIdentity() {
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  return HostName() + "/" + boot_id;
}

std::string HumanBytes(int64_t bytes) {
  if (bytes >= int64_t{1} << 30) return absl::StrFormat("%.2f GiB", bytes / double{1 << 30});
  return absl::StrFormat("%.1f MiB", bytes / double{1 << 20});
}

}  // namespace

WorkerSession::WorkerSession(const WorkerConfig& config, const ModelLoader& load)
    : config_(config), load_(load), inbox_(kInboxCapacity) {}

WorkerSession::~WorkerSession() = default;

absl::Status WorkerSession::Run(int stop_descriptor) {
  RETURN_IF_ERROR(StartMetrics());
  const int quit = eventfd(0, EFD_CLOEXEC);
  if (quit < 0) return absl::InternalError("eventfd failed");
  stop_watcher_ = std::thread([this, stop_descriptor, quit] { WatchStop(stop_descriptor, quit); });

  absl::Status result = RunPhases();
  ready_ = false;
  if (absl::Status end = ended(); !result.ok() && !end.ok()) result = std::move(end);
  if (result.code() == absl::StatusCode::kCancelled && stop_requested()) {
    result = absl::OkStatus();  // stopped before it served
  }
  if (!result.ok()) {
    EndGroup(result);  // wakes the other ranks, with this reason if there is none yet
    SendFailure(result);
  }

  // From here on nobody is told of anything: streams and watches first, then what they point at.
  inbox_.set_on_space(nullptr);
  if (client_ != nullptr) client_->Finish(kGoodbyeTimeout);
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(quit, &one, sizeof one);
  stop_watcher_.join();
  close(quit);
  {
    absl::MutexLock lock(&mu_);
    abort_comm_ = nullptr;
    abort_runner_ = nullptr;
    abort_sender_ = nullptr;
    abort_receiver_ = nullptr;
  }
  client_.reset();
  http_.reset();
  model_ = LoadedModel{};
  sender_.reset();
  receiver_.reset();
  comm_.reset();
  return result;
}

absl::Status WorkerSession::RunPhases() {
  RETURN_IF_ERROR(Dial());
  RETURN_IF_ERROR(AwaitAssignment());
  RETURN_IF_ERROR(MeetRanks());
  RETURN_IF_ERROR(LoadWeights());
  RETURN_IF_ERROR(AllocateKv());
  return ServeSteps();
}

absl::Status WorkerSession::StartMetrics() {
  if (config_.metrics_listen.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(config_.metrics_listen));
  ASSIGN_OR_RETURN(
      http_, HttpServer::Start(address,
                               {{"/metrics",
                                 [this] {
                                   return HttpResponse{200, registry_.Text(), kMetricsContentType};
                                 }},
                                {"/livez",
                                 [] {
                                   return HttpResponse{200, "ok\n"};
                                 }},
                                {"/readyz", [this] { return Readiness(); }}}));
  LogInfo("metrics", {{"address", address.host}, {"port", http_->port()}});
  return absl::OkStatus();
}

HttpResponse WorkerSession::Readiness() const {
  if (const absl::Status end = ended(); !end.ok()) {
    return HttpResponse{503, std::string(end.message()) + "\n"};
  }
  if (stop_requested()) return HttpResponse{503, "draining\n"};
  if (!ready_) return HttpResponse{503, "starting\n"};
  return HttpResponse{200, "ok\n"};
}

absl::Status WorkerSession::Dial() {
  wire::ConnectRequest hello;
  wire::Register* m = hello.mutable_register_();
  m->set_worker(absl::StrFormat("%s/%d", HostName(), getpid()));
  m->set_device(config_.device == "auto" ? "cpu" : config_.device);
  m->set_threads(static_cast<uint32_t>(config_.threads));
  m->set_memory_bytes(static_cast<uint64_t>(config_.memory_bytes));
  m->set_host(HostIdentity());
  if (config_.rank_hint >= 0) m->set_rank_hint(static_cast<uint32_t>(config_.rank_hint));

  GroupStreamClient::Options options;
  options.address = config_.coordinator;
  options.connect_timeout = config_.connect_timeout;
  options.stop_requested = [this] { return stop_requested(); };
  GroupStreamClient::Handlers handlers;
  handlers.on_message = [this](const wire::ConnectResponse& message) { return OnMessage(message); };
  handlers.on_end = [this](const absl::Status& status) { OnStreamEnd(status); };
  ASSIGN_OR_RETURN(client_, GroupStreamClient::Connect(options, hello, std::move(handlers)));
  inbox_.set_on_space([this] { client_->ResumeReading(); });
  return absl::OkStatus();
}

absl::Status WorkerSession::AwaitAssignment() {
  const auto settled = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return assigned_.has_value() || !end_.ok() || stop_;
  };
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&settled));
  RETURN_IF_ERROR(end_);
  if (!assigned_.has_value()) return absl::CancelledError("stopped before it was assigned");
  assignment_ = assigned_->assignment();
  epoch_ = assigned_->epoch();
  LogInfo("assigned", {{"rank", assignment_.rank()},
                       {"ranks", assignment_.size()},
                       {"epoch", epoch_},
                       {"model", assignment_.model_path()}});
  if (assignment_.size() < 1 || assignment_.size() > 64 ||
      assignment_.rank() >= assignment_.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("the coordinator assigned rank %d of %d",
                                                      assignment_.rank(), assignment_.size()));
  }
  metrics_ = std::make_unique<WorkerMetrics>(registry_, static_cast<int>(assignment_.rank()));
  return absl::OkStatus();
}

absl::Status WorkerSession::MeetRanks() {
  const int rank = static_cast<int>(assignment_.rank());
  const int size = static_cast<int>(assignment_.size());
  if (size == 1) {
    comm_ = std::move(CreateInprocCommunicators(1)[0]);
    sender_ = std::move(CreateInprocPlanChannel(1).sender);
    return absl::OkStatus();
  }
  ShmCommOptions comm;
  comm.name = assignment_.rendezvous();
  comm.rank = RankId{rank};
  comm.size = size;
  comm.connect_timeout = config_.meet_timeout;
  comm.operation_timeout = config_.load_timeout;  // the others may load longer than this rank
  ASSIGN_OR_RETURN(comm_, CreateShmCommunicator(comm));

  PlanChannelOptions plans;
  plans.name = assignment_.rendezvous() + "-plans";
  plans.rank = rank;
  plans.size = size;
  plans.connect_timeout = config_.meet_timeout;
  plans.send_timeout = config_.operation_timeout;
  plans.on_peer_exit = [this](const std::string& reason) {
    EndGroup(absl::UnavailableError(reason));
  };
  if (rank == 0) {
    ASSIGN_OR_RETURN(sender_, CreateShmPlanSender(plans));
  } else {
    ASSIGN_OR_RETURN(receiver_, CreateShmPlanReceiver(plans));
  }
  absl::MutexLock lock(&mu_);
  abort_comm_ = comm_.get();
  abort_sender_ = sender_.get();
  abort_receiver_ = receiver_.get();
  return end_;
}

absl::Status WorkerSession::LoadWeights() {
  ModelRequest request;
  request.path = assignment_.model_path();
  request.rank = RankId{static_cast<int32_t>(assignment_.rank())};
  request.size = static_cast<int>(assignment_.size());
  RunnerOptions& options = request.options;
  if (assignment_.compute() != "auto") {
    ASSIGN_OR_RETURN(request.compute, ParseComputeType(assignment_.compute()));
  }
  request.share_communicator_id = [this](const std::string& own) {
    return ShareCommunicatorId(own);
  };
  request.ended = [this] { return ended(); };
  request.on_lost = [this](absl::Status why) { EndGroup(std::move(why)); };
  options.arith = assignment_.arith().empty() ? "auto" : assignment_.arith();
  options.kv_format = assignment_.kv_format();
  options.kv_type = assignment_.kv_type();
  options.threads = config_.threads;
  options.cpus = config_.cpus;
  options.max_step_tokens = static_cast<int>(assignment_.max_step_tokens());
  options.max_running = static_cast<int>(assignment_.max_running());
  // One row per running sequence; prompt logprobs, which want more, come in slices.
  options.max_logits_rows = std::max(1, std::min(options.max_step_tokens, options.max_running));
  options.max_context = assignment_.max_context_tokens();

  absl::Time last_sent = absl::InfinitePast();
  const auto progress = [this, &last_sent](int64_t done, int64_t total) {
    const absl::Time now = absl::Now();
    if (done < total && now - last_sent < kProgressInterval) return;
    last_sent = now;
    wire::ConnectRequest message = NewMessage();
    message.mutable_progress()->set_done_bytes(static_cast<uint64_t>(done));
    message.mutable_progress()->set_total_bytes(static_cast<uint64_t>(total));
    SendOrEnd(std::move(message));
  };
  ASSIGN_OR_RETURN(model_, load_(request, *comm_, progress));
  absl::MutexLock lock(&mu_);
  abort_runner_ = model_.runner.get();
  return end_;
}

absl::StatusOr<std::string> WorkerSession::ShareCommunicatorId(const std::string& own) {
  if (assignment_.rank() == 0) {
    wire::ConnectRequest message = NewMessage();
    message.mutable_communicator_id()->set_id(own);
    SendOrEnd(std::move(message));
    return own;
  }
  const auto settled = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return communicator_id_.has_value() || !end_.ok();
  };
  absl::MutexLock lock(&mu_);
  if (!mu_.AwaitWithTimeout(absl::Condition(&settled), config_.load_timeout)) {
    return absl::DeadlineExceededError(
        absl::StrFormat("rank 0 has not said within %s where the GPUs meet",
                        absl::FormatDuration(config_.load_timeout)));
  }
  RETURN_IF_ERROR(end_);
  return *communicator_id_;
}

absl::Status WorkerSession::AllocateKv() {
  ModelRunner& runner = *model_.runner;
  KvBudgetInput input;
  for (const KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
    input.page_bytes[static_cast<int>(family)] = runner.page_bytes(family);
  }
  input.kv_bytes = assignment_.kv_bytes() > 0 ? static_cast<int64_t>(assignment_.kv_bytes())
                                              : runner.default_kv_bytes();
  input.window = model_.window;
  input.max_context = static_cast<int32_t>(assignment_.max_context_tokens());
  input.model_context = model_.model_context;
  input.max_running = static_cast<int32_t>(assignment_.max_running());
  input.max_step_tokens = static_cast<int32_t>(assignment_.max_step_tokens());
  input.prefix_cache = assignment_.prefix_cache();
  // The ranks' words to each other are the hosts', whatever the device.
  const std::unique_ptr<Stream> stream = CreateCpuStream();
  ASSIGN_OR_RETURN(kv_, AgreeOnKv(input, *comm_, *stream));
  const absl::Status allocated = runner.AllocateKv(kv_.pages);
  RETURN_IF_ERROR(AgreeOnStatus(allocated, *comm_, *stream));
  comm_->set_operation_timeout(config_.operation_timeout);

  const int64_t total = runner.weights_bytes() + kv_.bytes + runner.workspace_bytes();
  LogInfo(absl::StrFormat("weights + KV + workspace = %s", HumanBytes(total)),
          {{"weights", HumanBytes(runner.weights_bytes())},
           {"kv", HumanBytes(kv_.bytes)},
           {"workspace", HumanBytes(runner.workspace_bytes())},
           {"bytes", total},
           {"sliding_pages", kv_.pages[0]},
           {"global_pages", kv_.pages[1]},
           {"max_context", kv_.max_context},
           {"arith", runner.resolved_arith()}});
  if (config_.memory_bytes > 0 && total > config_.memory_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("weights, KV and workspace of rank %d take %s, it may use %s",
                        assignment_.rank(), HumanBytes(total), HumanBytes(config_.memory_bytes)));
  }
  metrics_->SetMemory(runner.weights_bytes(), kv_.bytes, runner.workspace_bytes());
  metrics_->SetPages(kv_.pages);
  vocab_ = model_.vocab;

  wire::ConnectRequest message = NewMessage();
  wire::Ready* ready = message.mutable_ready();
  ready->set_weights_bytes(static_cast<uint64_t>(runner.weights_bytes()));
  ready->set_kv_bytes(static_cast<uint64_t>(kv_.bytes));
  ready->set_workspace_bytes(static_cast<uint64_t>(runner.workspace_bytes()));
  ready->set_sliding_pages(static_cast<uint32_t>(kv_.pages[0]));
  ready->set_global_pages(static_cast<uint32_t>(kv_.pages[1]));
  ready->set_max_context_tokens(static_cast<uint32_t>(kv_.max_context));
  ready->set_arith(runner.resolved_arith());
  ready->set_compute(Name(model_.compute));
  SendOrEnd(std::move(message));
  ready_ = true;
  return ended();
}

absl::Status WorkerSession::ServeSteps() {
  ExecutorConfig executor_config;
  executor_config.epoch = epoch_;
  executor_config.pages = kv_.pages;
  executor_config.max_logits_rows = std::max(
      1, static_cast<int>(std::min(assignment_.max_step_tokens(), assignment_.max_running())));
  executor_config.vocab = model_.vocab;
  Executor executor(*model_.runner, *model_.sampler, executor_config);
  // Whoever waits for this rank must know of an error before the executor waits for its steps in
  // flight, which wait for the others.
  const auto ending = [this](absl::Status result) {
    if (!result.ok()) EndGroup(result);
    return result;
  };
  if (receiver_ != nullptr) return ending(RunFollower(*receiver_, executor, *metrics_));

  SchedulerConfig config;
  config.pages = kv_.pages;
  config.window = model_.window;
  config.max_context = kv_.max_context;
  config.max_running = static_cast<int32_t>(assignment_.max_running());
  config.max_step_tokens = static_cast<int32_t>(assignment_.max_step_tokens());
  config.max_queued = static_cast<int32_t>(assignment_.max_queued());
  config.max_queued_tokens = static_cast<int64_t>(assignment_.max_queued_tokens());
  config.max_in_flight = assignment_.max_in_flight() == 1 ? 1 : Executor::kMaxInFlight;
  config.step_seconds_target = assignment_.step_seconds_target();
  config.tenant_weights.insert(assignment_.tenant_weights().begin(),
                               assignment_.tenant_weights().end());
  config.prefix_cache = assignment_.prefix_cache();
  config.epoch = epoch_;
  const std::unique_ptr<Scheduler> scheduler = Scheduler::Create(config);
  LeaderOptions options;
  options.has_followers = assignment_.size() > 1;
  options.max_in_flight = config.max_in_flight;
  options.drain_timeout = config_.drain_timeout;
  options.epoch = epoch_;
  Leader leader(inbox_, *scheduler, *sender_, executor, *this, *metrics_, SteadySeconds, options);
  Load(scheduler->stats());
  return ending(leader.Run());
}

bool WorkerSession::OnMessage(const wire::ConnectResponse& message) {
  switch (message.message_case()) {
    case wire::ConnectResponse::kAssignment: {
      absl::MutexLock lock(&mu_);
      if (!assigned_.has_value()) assigned_ = message;
      return true;
    }
    case wire::ConnectResponse::kSubmit:
      return OnSubmit(message.submit());
    case wire::ConnectResponse::kCancel:
      inbox_.Cancel(RequestId{message.cancel().id()});
      return true;
    case wire::ConnectResponse::kPause:
      inbox_.Pause(RequestId{message.pause().id()});
      return true;
    case wire::ConnectResponse::kResume:
      inbox_.Resume(RequestId{message.resume().id()});
      return true;
    case wire::ConnectResponse::kAbort: {
      {
        absl::MutexLock lock(&mu_);
        if (end_.ok()) coordinator_knows_ = true;
      }
      EndGroup(absl::AbortedError(message.abort().reason()));
      return true;
    }
    case wire::ConnectResponse::kCommunicatorId: {
      absl::MutexLock lock(&mu_);
      communicator_id_ = message.communicator_id().id();
      return true;
    }
    case wire::ConnectResponse::kDrain:
      RequestStop();
      return true;
    case wire::ConnectResponse::MESSAGE_NOT_SET:
      return true;  // of a newer coordinator
  }
  return true;
}

// The engine answers, also to what can not be a request: every request ends in one event.
bool WorkerSession::OnSubmit(const wire::Submit& submit) {
  EngineRequest request = FromMessage(submit);
  if (absl::Status bad = CheckRequest(vocab_, &request); !bad.ok()) {
    EngineEvent event;
    event.id = request.sequence.id;
    event.finish = FinishReason::kError;
    event.error = std::move(bad);
    return inbox_.Refuse(std::move(event));
  }
  return inbox_.Submit(std::move(request));
}

void WorkerSession::OnStreamEnd(const absl::Status& status) {
  {
    absl::MutexLock lock(&mu_);
    if (end_.ok()) coordinator_knows_ = true;
  }
  std::string why = status.ok() ? "it closed the stream" : std::string(status.message());
  EndGroup(absl::Status(status.ok() ? absl::StatusCode::kUnavailable : status.code(),
                        absl::StrFormat("the coordinator at %s is gone or refuses this worker: %s",
                                        config_.coordinator, why)));
}

void WorkerSession::EndGroup(absl::Status why) {
  absl::MutexLock lock(&mu_);
  if (!end_.ok()) return;
  end_ = why;
  const std::string reason(why.message());
  if (abort_comm_ != nullptr) abort_comm_->Abort(reason);
  if (abort_runner_ != nullptr) abort_runner_->Abort(reason);
  if (abort_sender_ != nullptr) abort_sender_->Abort(reason);
  if (abort_receiver_ != nullptr) abort_receiver_->Abort(reason);
  inbox_.End(std::move(why));
}

absl::Status WorkerSession::ended() const {
  absl::MutexLock lock(&mu_);
  return end_;
}

void WorkerSession::RequestStop() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  inbox_.Drain();
}

bool WorkerSession::stop_requested() const {
  absl::MutexLock lock(&mu_);
  return stop_;
}

// A follower keeps computing until the leader has drained: the leader's streams need it. Should the
// leader not end, the follower leaves when the drain's time is up, which ends the group.
void WorkerSession::WatchStop(int stop_descriptor, int quit_descriptor) {
  pollfd fds[2] = {{quit_descriptor, POLLIN, 0}, {stop_descriptor, POLLIN, 0}};
  while (poll(fds, 2, -1) <= 0) {
  }
  if (fds[0].revents != 0) return;
  LogInfo("stopping");
  RequestStop();
  const absl::Time deadline = absl::Now() + config_.drain_timeout + absl::Seconds(10);
  while (true) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0) break;
    if (poll(fds, 1, static_cast<int>(std::min<int64_t>(left, 3'600'000))) > 0) return;
  }
  EndGroup(absl::DeadlineExceededError(absl::StrFormat(
      "the group has not drained within %s", absl::FormatDuration(config_.drain_timeout))));
}

void WorkerSession::Events(uint64_t step, std::vector<EngineEvent> events) {
  wire::ConnectRequest message = client_->TakeSpare();
  message.set_epoch(epoch_);
  FillMessage(step, events, message.mutable_step_events());
  SendOrEnd(std::move(message));
}

void WorkerSession::Load(const EngineStats& stats) {
  metrics_->SetStats(stats);
  if (stats == last_load_) return;
  // Counters grow in every step; who waits and runs changes seldom and is told at once.
  const bool same_requests =
      stats.waiting == last_load_.waiting && stats.running == last_load_.running;
  const absl::Time now = absl::Now();
  if (same_requests && stats.running > 0 && now - last_load_sent_ < kLoadInterval) return;
  last_load_ = stats;
  last_load_sent_ = now;
  wire::ConnectRequest message = NewMessage();
  *message.mutable_load() = ToMessage(stats);
  wire::StepSeconds* seconds = message.mutable_load()->mutable_step_seconds();
  seconds->set_plan(metrics_->step_seconds().plan);
  seconds->set_forward(metrics_->step_seconds().forward);
  seconds->set_sample(metrics_->step_seconds().sample);
  SendOrEnd(std::move(message));
}

wire::ConnectRequest WorkerSession::NewMessage() const {
  wire::ConnectRequest message;
  message.set_epoch(epoch_);
  return message;
}

void WorkerSession::SendOrEnd(wire::ConnectRequest message) {
  absl::Status sent = client_->Send(std::move(message));
  if (absl::IsUnavailable(sent)) return;  // OnStreamEnd follows and knows why
  if (!sent.ok()) EndGroup(std::move(sent));
}

void WorkerSession::SendFailure(const absl::Status& why) {
  if (client_ == nullptr) return;
  {
    absl::MutexLock lock(&mu_);
    if (coordinator_knows_) return;
  }
  wire::ConnectRequest message = NewMessage();
  message.mutable_failure()->set_code(static_cast<int>(why.code()));
  message.mutable_failure()->set_message(std::string(why.message()));
  client_->Send(std::move(message)).IgnoreError();
}

}  // namespace lapidary
