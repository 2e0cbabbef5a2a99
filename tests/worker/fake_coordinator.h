// A coordinator as a worker sees it: takes registrations, assigns ranks once all are there, keeps
// what it is told, and says what the test wants said.
#pragma once
#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "lapidary/cluster/v1/cluster.grpc.pb.h"

namespace lapidary {

class FakeCoordinator final : public cluster::v1::ClusterService::Service {
 public:
  using Request = cluster::v1::ConnectRequest;
  using Response = cluster::v1::ConnectResponse;

  // `assignment` but for rank and size.
  FakeCoordinator(int size, cluster::v1::Assignment assignment)
      : size_(size), assignment_(std::move(assignment)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeCoordinator() override { Stop(); }

  std::string address() const { return absl::StrFormat("127.0.0.1:%d", port_); }
  // As if the process had died.
  void Stop() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    if (server_ != nullptr) server_->Wait();
    server_.reset();
  }

  void Send(int rank, Response message) {
    message.set_epoch(kEpoch);
    absl::MutexLock lock(&mu_);
    const auto found = streams_.find(rank);
    if (found != streams_.end()) found->second->Write(message);
  }
  void SendAll(const Response& message) {
    for (int r = 0; r < size_; ++r) Send(r, message);
  }

  // What one request got.
  struct Outcome {
    std::vector<int32_t> tokens;
    cluster::v1::Finish finish = cluster::v1::FINISH_UNSPECIFIED;
    int error_code = 0;
    std::string error_message;
    int finishes = 0;
  };
  bool AwaitReady() {
    return Await([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return ready_ == size_; });
  }
  bool AwaitFinished(int count) {
    return Await([this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return finished_ >= count; });
  }
  bool AwaitTokens(uint64_t id, size_t count) {
    return Await([this, id, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return outcomes_[id].tokens.size() >= count;
    });
  }
  bool AwaitFailure(int rank) {
    return Await([this, rank]()
                     ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return failures_.contains(rank); });
  }
  bool AwaitRegistered(int count) {
    return Await([this, count]()
                     ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return registered_ >= count; });
  }
  Outcome outcome(uint64_t id) {
    absl::MutexLock lock(&mu_);
    return outcomes_[id];
  }
  std::string failure(int rank) {
    absl::MutexLock lock(&mu_);
    return failures_[rank];
  }
  cluster::v1::Load load() {
    absl::MutexLock lock(&mu_);
    return load_;
  }
  cluster::v1::Ready ready_of(int rank) {
    absl::MutexLock lock(&mu_);
    return readies_[rank];
  }
  cluster::v1::Progress progress_of(int rank) {
    absl::MutexLock lock(&mu_);
    return progress_[rank];
  }

 private:
  static constexpr uint64_t kEpoch = 5;
  using Stream = grpc::ServerReaderWriter<Response, Request>;

  grpc::Status Connect(grpc::ServerContext*, Stream* stream) override {
    Request message;
    if (!stream->Read(&message) || !message.has_register_()) {
      return grpc::Status(grpc::INVALID_ARGUMENT, "the first message must be Register");
    }
    int rank = 0;
    {
      absl::MutexLock lock(&mu_);
      rank = message.register_().has_rank_hint() ? static_cast<int>(message.register_().rank_hint())
                                                 : registered_;
      if (rank >= size_) return grpc::Status(grpc::INVALID_ARGUMENT, "no such rank");
      ++registered_;
      streams_[rank] = stream;
      if (std::ssize(streams_) == size_ && registered_ == size_) {
        for (const auto& entry : streams_) {
          Response response;
          response.set_epoch(kEpoch);
          *response.mutable_assignment() = assignment_;
          response.mutable_assignment()->set_rank(static_cast<uint32_t>(entry.first));
          response.mutable_assignment()->set_size(static_cast<uint32_t>(size_));
          entry.second->Write(response);
        }
      }
    }
    while (stream->Read(&message)) Take(rank, message);
    absl::MutexLock lock(&mu_);
    streams_.erase(rank);
    return grpc::Status::OK;
  }

  void Take(int rank, const Request& message) {
    absl::MutexLock lock(&mu_);
    if (message.has_ready()) {
      ++ready_;
      readies_[rank] = message.ready();
    }
    if (message.has_failure()) failures_[rank] = message.failure().message();
    if (message.has_progress()) progress_[rank] = message.progress();
    if (message.has_load()) load_ = message.load();
    if (message.has_communicator_id()) {  // relayed, as the real one does
      Response response;
      response.set_epoch(kEpoch);
      *response.mutable_communicator_id() = message.communicator_id();
      for (const auto& entry : streams_) {
        if (entry.first != 0) entry.second->Write(response);
      }
    }
    for (const cluster::v1::RequestEvent& event : message.step_events().events()) {
      Outcome& outcome = outcomes_[event.id()];
      for (const auto& token : event.tokens()) {
        outcome.tokens.push_back(static_cast<int32_t>(token.id()));
      }
      if (event.finish() == cluster::v1::FINISH_UNSPECIFIED) continue;
      outcome.finish = event.finish();
      outcome.error_code = event.error_code();
      outcome.error_message = event.error_message();
      ++outcome.finishes;
      ++finished_;
    }
  }

  template <class F>
  bool Await(const F& condition) {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&condition), absl::Seconds(60));
  }

  const int size_;
  const cluster::v1::Assignment assignment_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;

  absl::Mutex mu_;
  int registered_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<int, Stream*> streams_ ABSL_GUARDED_BY(mu_);  // by rank
  int ready_ ABSL_GUARDED_BY(mu_) = 0;
  int finished_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<int, cluster::v1::Ready> readies_ ABSL_GUARDED_BY(mu_);
  std::map<int, cluster::v1::Progress> progress_ ABSL_GUARDED_BY(mu_);
  std::map<int, std::string> failures_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Outcome> outcomes_ ABSL_GUARDED_BY(mu_);
  cluster::v1::Load load_ ABSL_GUARDED_BY(mu_);
};

}  // namespace lapidary
