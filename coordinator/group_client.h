// One group of ranks as the coordinator sees it: who is connected, which epoch, is it ready, and
// which request belongs to whom. No gRPC in here: workers are WorkerLinks (cluster_service.cc),
// requests are RequestSinks (token_stream.cc).
//
//   waiting --all ranks registered--> loading --leader ready--> ready --drain--> draining
//      ^-------------------------- a rank is lost, or gives up ------'
//
// Losing any rank ends the epoch: the others are told to abort, every live request gets UNAVAILABLE
// with the reason, and the group waits for a whole new set of workers.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "coordinator/config.h"
#include "coordinator/group_state.h"
#include "lapidary/cluster/v1/cluster.pb.h"

namespace lapidary {

// Where a request's events go. Called on the leader's reader thread (OnEvent) or any thread
// (OnLost), never with a lock of the group held; must not block.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void OnEvent(const cluster::v1::RequestEvent& event, absl::Time now) = 0;
  // The group is gone; no event follows.
  virtual void OnLost(const absl::Status& why, absl::Time now) = 0;
};

// One worker's stream, outgoing side. Any thread; must not block and must not call the group back.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  virtual void Send(cluster::v1::ConnectResponse message) = 0;
  // Ends the stream once everything sent has gone out. Later Sends are dropped.
  virtual void Close(const absl::Status& status) = 0;
};

class GroupClient {
 public:
  // `on_change` runs after the phase may have changed, on any thread, without locks: it reads
  // state() afresh. `name` distinguishes groups of this and other coordinators in rendezvous names.
  // `on_steps` gets what the leader has computed, on its reader thread; may be null.
  GroupClient(const CoordinatorConfig& config, std::string name, absl::Time now,
              std::function<void()> on_change,
              std::function<void(const StepWork&)> on_steps = nullptr);

  // --- Workers ---
  // Takes a worker. ALREADY_EXISTS for a rank that is taken, INVALID_ARGUMENT for one beyond the
  // group, FAILED_PRECONDITION when the group is complete. Assigns everybody once all are there.
  absl::Status Register(const cluster::v1::Register& worker, std::shared_ptr<WorkerLink> link)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Messages of one link come in order, one at a time. Old epochs are dropped with a warning.
  void OnMessage(const WorkerLink* link, const cluster::v1::ConnectRequest& message, absl::Time now)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The stream ended; unknown links (refused, or of an ended epoch) are ignored.
  void OnClosed(const WorkerLink* link, std::string_view why, absl::Time now)
      ABSL_LOCKS_EXCLUDED(mu_);

  // --- Requests ---
  // Sends all choices of a request to the leader. UNAVAILABLE with RetryInfo when not ready.
  absl::Status Submit(const std::vector<cluster::v1::Submit>& choices,
                      const std::shared_ptr<RequestSink>& sink) ABSL_LOCKS_EXCLUDED(mu_);
  // Forgets requests here and at the leader; unknown ids are ignored. No event follows.
  void Cancel(const std::vector<RequestId>& ids) ABSL_LOCKS_EXCLUDED(mu_);
  // Has the leader pause requests, or resume them; unknown ids are ignored. Events may still
  // follow.
  void SetPaused(const std::vector<RequestId>& ids, bool paused) ABSL_LOCKS_EXCLUDED(mu_);

  // --- Lifecycle ---
  GroupState state() const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until the group is ready (OK), an epoch has failed (UNAVAILABLE), or the deadline.
  absl::Status WaitUntilReady(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // Notices workers that never came. Called a few times a second.
  void Tick(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  // No new requests.
  void BeginDrain() ABSL_LOCKS_EXCLUDED(mu_);
  // Tells the workers to finish and exit, and waits until they are gone or the deadline.
  void DrainWorkers(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends the epoch with this reason; the group stays closed.
  void Abort(std::string_view reason, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Worker {
    std::shared_ptr<WorkerLink> link;
    std::string name;    // host/pid
    std::string device;  // cpu, cuda, null
    int hint = -1;       // wanted rank
    int rank = -1;       // once assigned
    bool ready = false;
    int64_t done_bytes = 0, total_bytes = 0;
    cluster::v1::Ready sizes;
  };
  // What is left to do after the lock is given up.
  struct Ending {
    absl::Status status;
    std::vector<std::shared_ptr<RequestSink>> sinks;
  };

  Worker* Find(const WorkerLink* link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Worker* Leader() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // After workers_ has changed while the group waits.
  void CountWorkers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AssignRanks() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The leader's, for the others.
  void RelayCommunicatorId(const Worker& from, const cluster::v1::CommunicatorId& id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TakeReady(Worker* worker, const cluster::v1::Ready& ready)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  StepWork TakeLoad(const cluster::v1::Load& load) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Ending EndEpoch(const Worker* culprit, std::string_view why, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Deliver(const cluster::v1::StepEvents& step, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  static void Finish(const Ending& ending, absl::Time now);

  const CoordinatorConfig config_;
  const std::string name_;
  const std::function<void()> on_change_;
  const std::function<void(const StepWork&)> on_steps_;

  mutable absl::Mutex mu_;
  GroupState state_ ABSL_GUARDED_BY(mu_);
  std::vector<Worker> workers_ ABSL_GUARDED_BY(mu_);  // by rank once assigned
  absl::flat_hash_map<RequestId, std::shared_ptr<RequestSink>> live_ ABSL_GUARDED_BY(mu_);
  absl::Time waiting_since_ ABSL_GUARDED_BY(mu_);
  bool overdue_ ABSL_GUARDED_BY(mu_) = false;   // missing workers were reported
  bool draining_ ABSL_GUARDED_BY(mu_) = false;  // for good
  bool workers_told_to_drain_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace lapidary
