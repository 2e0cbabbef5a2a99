// The state of one worker process and the phases it goes through, in order:
//
//   Dial -> AwaitAssignment -> MeetRanks -> LoadWeights -> AllocateKv -> ServeSteps
//
// Threads: the engine thread runs the phases and the steps; gRPC's threads bring messages; a stop
// watcher waits for the stop descriptor; peer watches tell of ranks that died. Whatever ends the
// group ends it through EndGroup(), which wakes all others, and the first reason stays.
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/http_server.h"
#include "common/metrics_registry.h"
#include "engine/kv_budget.h"
#include "lapidary/cluster/v1/cluster.pb.h"
#include "worker/config.h"
#include "worker/engine_inbox.h"
#include "worker/group_stream_client.h"
#include "worker/leader.h"
#include "worker/model_loader.h"
#include "worker/plan_channel.h"
#include "worker/worker_metrics.h"

namespace lapidary {

class WorkerSession final : private LeaderOutput {
 public:
  WorkerSession(const WorkerConfig& config, const ModelLoader& load);
  ~WorkerSession() override;

  absl::Status Run(int stop_descriptor);

 private:
  // The phases. CANCELLED: asked to stop before there was anything to drain.
  absl::Status StartMetrics();
  absl::Status Dial();
  absl::Status AwaitAssignment();
  absl::Status MeetRanks();
  absl::Status LoadWeights();
  absl::Status AllocateKv();
  absl::Status ServeSteps();
  // See ModelRequest: through the coordinator.
  absl::StatusOr<std::string> ShareCommunicatorId(const std::string& own) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status RunPhases();

  // gRPC's threads.
  bool OnMessage(const cluster::v1::ConnectResponse& message);
  void OnStreamEnd(const absl::Status& status);
  bool OnSubmit(const cluster::v1::Submit& submit);

  // Any thread.
  void EndGroup(absl::Status why) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status ended() const ABSL_LOCKS_EXCLUDED(mu_);
  void RequestStop() ABSL_LOCKS_EXCLUDED(mu_);
  bool stop_requested() const ABSL_LOCKS_EXCLUDED(mu_);
  void WatchStop(int stop_descriptor, int quit_descriptor);
  HttpResponse Readiness() const;

  // LeaderOutput, and other messages to the coordinator.
  void Events(uint64_t step, std::vector<EngineEvent> events) override;
  void Load(const EngineStats& stats) override;
  cluster::v1::ConnectRequest NewMessage() const;
  void SendOrEnd(cluster::v1::ConnectRequest message);
  void SendFailure(const absl::Status& why);

  const WorkerConfig config_;
  const ModelLoader load_;

  // Engine thread, and those it starts afterwards.
  MetricsRegistry registry_;
  EngineInbox inbox_;
  cluster::v1::Assignment assignment_;  // written once, before anyone asks for it
  uint64_t epoch_ = 0;
  std::unique_ptr<Communicator> comm_;
  std::unique_ptr<PlanSender> sender_;      // leader
  std::unique_ptr<PlanReceiver> receiver_;  // others
  LoadedModel model_;
  KvBudget kv_;
  std::unique_ptr<WorkerMetrics> metrics_;
  EngineStats last_load_;
  absl::Time last_load_sent_ = absl::InfinitePast();
  std::atomic<int64_t> vocab_{0};  // read by OnSubmit; set before the coordinator may submit
  std::atomic<bool> ready_{false};

  mutable absl::Mutex mu_;
  std::optional<cluster::v1::ConnectResponse> assigned_ ABSL_GUARDED_BY(mu_);
  std::optional<std::string> communicator_id_ ABSL_GUARDED_BY(mu_);  // from the leader
  absl::Status end_ ABSL_GUARDED_BY(mu_);
  bool coordinator_knows_ ABSL_GUARDED_BY(mu_) = false;  // why this worker ends: no need to tell
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  // What EndGroup() wakes; set once, cleared before they go.
  Communicator* abort_comm_ ABSL_GUARDED_BY(mu_) = nullptr;
  ModelRunner* abort_runner_ ABSL_GUARDED_BY(mu_) = nullptr;
  PlanSender* abort_sender_ ABSL_GUARDED_BY(mu_) = nullptr;
  PlanReceiver* abort_receiver_ ABSL_GUARDED_BY(mu_) = nullptr;

  std::unique_ptr<GroupStreamClient> client_;
  std::unique_ptr<HttpServer> http_;
  std::thread stop_watcher_;
};

}  // namespace lapidary
