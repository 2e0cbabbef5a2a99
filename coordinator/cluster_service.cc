#include "coordinator/cluster_service.h"

#include <google/protobuf/arena.h>

#include <deque>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "common/grpc_status.h"
#include "common/log.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;

constexpr size_t kArenaBytes = 256 << 10;  // holds a step of a thousand sequences

// One worker's stream. Keeps itself alive until OnDone; the group may hold it longer, and then its
// Sends go nowhere.
class WorkerStream final
    : public grpc::ServerBidiReactor<wire::ConnectRequest, wire::ConnectResponse>,
      public WorkerLink,
      public std::enable_shared_from_this<WorkerStream> {
 public:
  explicit WorkerStream(GroupClient& group) : group_(group) {}

  void Begin() {
    self_ = shared_from_this();
    ReadNext();
  }

  void Send(wire::ConnectResponse message) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (closing_) return;
    outgoing_.push_back(std::move(message));
    if (!write_in_flight_) WriteNext();
  }

  void Close(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (closing_) return;
    closing_ = true;
    status_ = status;
    if (!write_in_flight_) Finish(ToGrpcStatus(status_));
  }

  void OnReadDone(bool ok) override {
    const absl::Time now = absl::Now();
    if (!ok) {
      group_.OnClosed(this, "its connection closed", now);
      Close(absl::OkStatus());
      return;
    }
    if (registered_) {
      group_.OnMessage(this, *incoming_, now);
    } else {
      const absl::Status status = Register();
      if (!status.ok()) {
        LogWarning("worker refused", {{"worker", incoming_->register_().worker()},
                                      {"why", std::string(status.message())}});
        Close(status);
        return;
      }
    }
    ReadNext();
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    write_in_flight_ = false;
    outgoing_.pop_front();
    if (!ok) outgoing_.clear();  // broken; OnReadDone tells the group
    if (!outgoing_.empty()) {
      WriteNext();
    } else if (closing_) {
      Finish(ToGrpcStatus(status_));
    }
  }

  void OnDone() override ABSL_LOCKS_EXCLUDED(mu_) {
    // gRPC calls this after all others, an order that ThreadSanitizer only sees by our lock.
    mu_.Lock();
    mu_.Unlock();
    self_.reset();
  }

 private:
  // Parsed messages live in an arena: a step's is a tree of hundreds.
  void ReadNext() {
    arena_.Reset();
    incoming_ = google::protobuf::Arena::CreateMessage<wire::ConnectRequest>(&arena_);
    StartRead(incoming_);
  }

  absl::Status Register() {
    if (!incoming_->has_register_()) {
      return absl::InvalidArgumentError("the first message must be Register");
    }
    registered_ = true;
    return group_.Register(incoming_->register_(), shared_from_this());
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    write_in_flight_ = true;
    StartWrite(&outgoing_.front());
  }

  GroupClient& group_;
  std::shared_ptr<WorkerStream> self_;
  // Reader callbacks only.
  std::unique_ptr<char[]> arena_block_{new char[kArenaBytes]};
  google::protobuf::Arena arena_{arena_block_.get(), kArenaBytes};
  wire::ConnectRequest* incoming_ = nullptr;  // in the arena
  bool registered_ = false;

  absl::Mutex mu_;
  std::deque<wire::ConnectResponse> outgoing_ ABSL_GUARDED_BY(mu_);  // front is being written
  bool write_in_flight_ ABSL_GUARDED_BY(mu_) = false;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;  // no Sends any more; Finish follows the queue
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerBidiReactor<wire::ConnectRequest, wire::ConnectResponse>* ClusterService::Connect(
    grpc::CallbackServerContext*) {
  const auto stream = std::make_shared<WorkerStream>(group_);
  stream->Begin();
  return stream.get();
}

}  // namespace lapidary
