// A coordinator and its workers on this machine: what `lapidary serve` runs, and `generate PATH`
// without a server. The same binary with explicit roles; nothing here knows a second way to serve.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/process.h"

namespace lapidary {

struct LocalClusterOptions {
  std::vector<std::string> coordinator_args;  // of `lapidary coordinator`, without --announce-fd
  std::vector<std::string> worker_args;       // of each `lapidary worker`, without address and rank
  int ranks = 1;
  int threads_per_rank = 0;  // 0: the CPUs of this process shared out
  absl::Duration start_timeout = absl::Minutes(30);
};

class LocalCluster {
 public:
  // Starts everything and waits until requests are welcome. `progress` gets the coordinator's word
  // on what it waits for, when it changes. `interrupted` is asked now and then; true gives up
  // (CANCELLED). On an error every process is gone again.
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(
      const LocalClusterOptions& options, const std::function<void(std::string_view)>& progress,
      const std::function<bool()>& interrupted);

  int port() const { return port_; }
  int metrics_port() const { return metrics_port_; }

  // OK while every process runs; else names the one that ended, and how.
  absl::Status Check();
  // Descriptors that become readable when a process ends.
  std::vector<int> PollDescriptors() const;
  // Drains: streams in progress finish, everything ends. Past `timeout` it is killed
  // (DEADLINE_EXCEEDED); a process that ends badly is UNAVAILABLE.
  absl::Status Stop(absl::Duration timeout);

 private:
  LocalCluster() = default;
  absl::Status StartCoordinator(const LocalClusterOptions& options);
  absl::Status StartWorkers(const LocalClusterOptions& options);
  absl::Status AwaitReady(const LocalClusterOptions& options,
                          const std::function<void(std::string_view)>& progress,
                          const std::function<bool()>& interrupted);

  std::vector<ChildProcess> children_;  // the coordinator first
  int port_ = 0;
  int worker_port_ = 0;
  int metrics_port_ = 0;
};

}  // namespace lapidary
