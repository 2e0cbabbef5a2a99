#include "worker/group_stream_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/grpc_status.h"
#include "lapidary/cluster/v1/cluster.grpc.pb.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;

constexpr size_t kMaxSpares = 16;
constexpr int kMaxMessageBytes = 64 << 20;
constexpr absl::Duration kDialSlice = absl::Milliseconds(100);  // how soon a stop is noticed

class Reactor final : public GroupStreamClient,
                      public grpc::ClientBidiReactor<wire::ConnectRequest, wire::ConnectResponse> {
 public:
  Reactor(const Options& options, std::shared_ptr<grpc::Channel> channel, Handlers handlers)
      : options_(options),
        handlers_(std::move(handlers)),
        channel_(std::move(channel)),
        stub_(wire::ClusterService::NewStub(channel_)) {}

  void Start(const wire::ConnectRequest& first) {
    stub_->async()->Connect(&context_, this);
    AddHold();  // writes begin outside of reactions; given back when reading or writing has ended
    {
      absl::MutexLock lock(&mu_);
      writing_ = first;
      write_in_flight_ = true;
    }
    StartWrite(&writing_);
    StartRead(&incoming_);
    StartCall();
  }

  ~Reactor() override {
    context_.TryCancel();
    absl::MutexLock lock(&mu_);
    DropHold();
    mu_.Await(absl::Condition(&done_));
  }

  absl::Status Send(wire::ConnectRequest message) override {
    const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return closing_ || queue_.size() < options_.max_queued;
    };
    absl::MutexLock lock(&mu_);
    if (!mu_.AwaitWithTimeout(absl::Condition(&ready), options_.send_timeout)) {
      return absl::DeadlineExceededError(
          absl::StrFormat("the coordinator has taken none of %d messages for %s", queue_.size(),
                          absl::FormatDuration(options_.send_timeout)));
    }
    if (closing_) return absl::UnavailableError("the stream to the coordinator has ended");
    queue_.push_back(std::move(message));
    WriteNext();
    return absl::OkStatus();
  }

  wire::ConnectRequest TakeSpare() override {
    absl::MutexLock lock(&mu_);
    if (spares_.empty()) return {};
    wire::ConnectRequest spare = std::move(spares_.back());
    spares_.pop_back();
    return spare;
  }

  void ResumeReading() override {
    absl::MutexLock lock(&mu_);
    if (closing_) return;
    if (std::exchange(reading_paused_, false)) {
      StartRead(&incoming_);
    } else {
      resumed_early_ = true;  // the handler has said stop, its reaction has not heard it yet
    }
  }

  void Finish(absl::Duration timeout) override {
    absl::MutexLock lock(&mu_);
    const auto flushed = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return closing_ || (queue_.empty() && !write_in_flight_);
    };
    const absl::Time deadline = absl::Now() + timeout;
    mu_.AwaitWithDeadline(absl::Condition(&flushed), deadline);
    if (!closing_ && !write_in_flight_) StartWritesDone();
    if (std::exchange(reading_paused_, false) && !closing_) StartRead(&incoming_);
    if (!mu_.AwaitWithDeadline(absl::Condition(&done_), deadline)) context_.TryCancel();
    mu_.Await(absl::Condition(&done_));
  }

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (closing_ || write_in_flight_ || queue_.empty()) return;
    writing_ = std::move(queue_.front());
    queue_.pop_front();
    write_in_flight_ = true;
    StartWrite(&writing_);
  }

  // After this no operation may be started from outside a reaction.
  void DropHold() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (std::exchange(closing_, true)) return;
    queue_.clear();
    RemoveHold();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    write_in_flight_ = false;
    if (writing_.has_step_events() && spares_.size() < kMaxSpares) {
      spares_.push_back(std::move(writing_));
    }
    if (ok) {
      WriteNext();
    } else {
      DropHold();  // the status says why
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      absl::MutexLock lock(&mu_);
      DropHold();
      return;
    }
    const bool more = handlers_.on_message(incoming_);
    absl::MutexLock lock(&mu_);
    if (more || std::exchange(resumed_early_, false)) {
      StartRead(&incoming_);  // inside a reaction: allowed also while closing
    } else {
      reading_paused_ = true;
    }
  }

  void OnDone(const grpc::Status& status) override {
    handlers_.on_end(FromGrpcStatus(status));
    absl::MutexLock lock(&mu_);
    closing_ = true;
    done_ = true;
  }

  const Options options_;
  const Handlers handlers_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<wire::ClusterService::Stub> stub_;
  grpc::ClientContext context_;
  wire::ConnectResponse incoming_;  // between StartRead and OnReadDone gRPC's

  absl::Mutex mu_;
  std::deque<wire::ConnectRequest> queue_ ABSL_GUARDED_BY(mu_);  // oldest first
  wire::ConnectRequest writing_;  // gRPC's while a write is in flight
  std::vector<wire::ConnectRequest> spares_ ABSL_GUARDED_BY(mu_);  // steps that have been sent
  bool write_in_flight_ ABSL_GUARDED_BY(mu_) = false;
  bool reading_paused_ ABSL_GUARDED_BY(mu_) = false;
  bool resumed_early_ ABSL_GUARDED_BY(mu_) = false;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;  // the hold has been given back
  bool done_ ABSL_GUARDED_BY(mu_) = false;     // no reaction follows
};

}  // namespace

absl::StatusOr<std::unique_ptr<GroupStreamClient>> GroupStreamClient::Connect(
    const Options& options, const wire::ConnectRequest& first, Handlers handlers) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A coordinator's host that vanished without a word is noticed within 40 s. The coordinator
  // accepts a ping each 10 s.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments);

  const absl::Time deadline = absl::Now() + options.connect_timeout;
  while (true) {
    const absl::Time until = std::min(deadline, absl::Now() + kDialSlice);
    if (channel->WaitForConnected(absl::ToChronoTime(until))) break;
    if (options.stop_requested && options.stop_requested()) {
      return absl::CancelledError(
          absl::StrFormat("stopped while dialling the coordinator at %s", options.address));
    }
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(absl::StrFormat("no coordinator answers at %s (tried for %s)",
                                                    options.address,
                                                    absl::FormatDuration(options.connect_timeout)));
    }
  }
  auto reactor = std::make_unique<Reactor>(options, std::move(channel), std::move(handlers));
  reactor->Start(first);
  return std::unique_ptr<GroupStreamClient>(std::move(reactor));
}

}  // namespace lapidary
