// A worker that speaks the cluster protocol and computes nothing: the test says what it answers.
#pragma once
#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "lapidary/cluster/v1/cluster.grpc.pb.h"

namespace lapidary {

class FakeWorker {
 public:
  struct Options {
    int port = 0;                  // the coordinator's worker port
    std::optional<uint32_t> rank;  // hint
    std::string name = "testhost/1";
    bool ready_at_once = true;  // answers the assignment with Ready
    uint32_t max_context = 64;
    std::string compute = "fp32";  // what it says it computes in
  };

  explicit FakeWorker(const Options& options);
  // As a killed process: the stream breaks.
  ~FakeWorker();

  // Each waits, and fails (nothing) after ten seconds.
  std::optional<cluster::v1::Assignment> AwaitAssignment();
  std::optional<cluster::v1::Submit> AwaitSubmit();
  std::optional<uint64_t> AwaitCancel();
  // A Pause (true) or Resume (false), in order of arrival, with its id.
  std::optional<std::pair<uint64_t, bool>> AwaitPauseChange();
  std::optional<std::string> AwaitAbort();
  bool AwaitDrain();
  // The stream's end as the coordinator gave it.
  std::optional<grpc::Status> AwaitEnd();

  // Adds the epoch. False once the stream is broken.
  bool Send(cluster::v1::ConnectRequest message);
  bool SendReady();
  bool SendEvents(const std::vector<cluster::v1::RequestEvent>& events);
  // With the epoch before ours.
  bool SendStale(const cluster::v1::RequestEvent& event);
  bool SendLoad(const cluster::v1::Load& load);
  // As a killed process.
  void Kill();
  // Exits in good order.
  void Leave();

 private:
  void Read();
  template <class Predicate>
  bool Await(Predicate predicate);

  const Options options_;
  grpc::ClientContext context_;
  std::unique_ptr<cluster::v1::ClusterService::Stub> stub_;
  std::unique_ptr<
      grpc::ClientReaderWriter<cluster::v1::ConnectRequest, cluster::v1::ConnectResponse>>
      stream_;
  absl::Mutex write_mu_;  // one writer at a time

  absl::Mutex mu_;
  uint64_t epoch_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<cluster::v1::Assignment> assignment_ ABSL_GUARDED_BY(mu_);
  std::deque<cluster::v1::Submit> submits_ ABSL_GUARDED_BY(mu_);
  std::deque<uint64_t> cancels_ ABSL_GUARDED_BY(mu_);
  std::deque<std::pair<uint64_t, bool>> pause_changes_ ABSL_GUARDED_BY(mu_);
  std::optional<std::string> abort_ ABSL_GUARDED_BY(mu_);
  bool drain_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mu_);
  std::thread reader_;
};

// An event with these tokens (logprob -0.5 each), and perhaps the end.
cluster::v1::RequestEvent MakeEvent(uint64_t id, const std::vector<int32_t>& tokens,
                                    cluster::v1::Finish finish = cluster::v1::FINISH_UNSPECIFIED);

}  // namespace lapidary
