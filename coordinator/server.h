// A whole coordinator: clients' port, workers' port, metrics port, and what stands between them.
//
// `lapidary serve` and `lapidary coordinator` start one; tests start it on loopback port 0.
#pragma once
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/config.h"
#include "coordinator/group_state.h"

namespace lapidary {

class CoordinatorServer {
 public:
  // Validates, reads the model's description and tokenizer (no weights), binds the three ports and
  // returns; workers may connect from then on. NOT_FOUND or INVALID_ARGUMENT for a bad model or
  // configuration, UNAVAILABLE for a port in use.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(const CoordinatorConfig& config);
  // Ends everything at once: live requests get UNAVAILABLE, workers an Abort.
  ~CoordinatorServer();

  int port() const;
  int worker_port() const;
  int metrics_port() const;

  // Any thread. For probes and progress.
  GroupState group_state() const;
  // Waits until the group serves. DEADLINE_EXCEEDED with the group's state, or UNAVAILABLE when an
  // epoch has ended (a rank died or gave up while loading) or workers are overdue, with the reason.
  absl::Status WaitUntilReady(absl::Time deadline);

  // Stops admitting (UNAVAILABLE, health NOT_SERVING), lets live streams finish until the drain
  // timeout, tells the workers to exit, closes the ports. Blocks; call once, from one thread.
  void Drain();

 private:
  class Impl;
  explicit CoordinatorServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lapidary
