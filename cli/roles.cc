// `lapidary coordinator` and `lapidary worker`: one process of a cluster.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/signals.h"
#include "common/log.h"
#include "coordinator/config.h"
#include "coordinator/server.h"
#include "worker/config.h"
#include "worker/worker_main.h"

namespace lapidary {
namespace {

CoordinatorConfig ToConfig(const CoordinatorFlags& flags) {
  CoordinatorConfig config;
  config.listen = absl::StrCat(flags.listen.host, ":", flags.listen.port);
  config.worker_listen = absl::StrCat(flags.worker_host, ":", flags.worker_port);
  config.metrics_listen = absl::StrCat(flags.listen.host, ":", flags.listen.metrics_port);
  config.insecure = flags.listen.insecure;
  config.model_path = flags.engine.model_path;
  config.served_model_name = flags.engine.served_model_name;
  config.compute = flags.engine.compute;
  config.arith = flags.engine.arith;
  config.tensor_parallel = std::max(1, flags.engine.tensor_parallel);
  config.max_context = flags.engine.max_context;
  config.max_running = flags.engine.max_running;
  config.max_step_tokens = flags.engine.max_step_tokens;
  config.max_queued = flags.engine.max_queued;
  config.max_queued_tokens = flags.engine.max_queued_tokens;
  config.kv_bytes = flags.engine.kv_bytes;
  config.kv_format = flags.engine.kv_format;
  config.kv_type = flags.engine.kv_type;
  config.prefix_cache = flags.engine.prefix_cache;
  config.max_in_flight = flags.engine.max_in_flight;
  config.step_time_target = absl::Milliseconds(flags.engine.step_time_target_ms);
  config.tenant_weights = flags.engine.tenant_weights;
  config.worker_connect_timeout = absl::Seconds(flags.worker_connect_timeout_s);
  config.drain_timeout = absl::Seconds(flags.drain_timeout_s);
  config.slow_reader_bytes = flags.listen.slow_reader_bytes;
  config.slow_reader_timeout = absl::Seconds(flags.listen.slow_reader_timeout_s);
  config.reflection = flags.listen.reflection;
  config.compat_metrics = flags.listen.vllm_metrics;
  return config;
}

}  // namespace

int RunCoordinator(const CoordinatorFlags& flags) {
  const absl::StatusOr<std::unique_ptr<CoordinatorServer>> server =
      CoordinatorServer::Start(ToConfig(flags));
  if (!server.ok()) return Fail(server.status());
  CoordinatorServer& coordinator = **server;
  if (flags.announce_fd >= 0) {
    dprintf(flags.announce_fd, "%d %d %d\n", coordinator.port(), coordinator.worker_port(),
            coordinator.metrics_port());
    close(flags.announce_fd);
  }
  WaitForStop();
  LogInfo("draining");
  coordinator.Drain();
  return 0;
}

int RunWorkerCommand(const WorkerFlags& flags) {
  WorkerConfig config;
  config.coordinator = flags.coordinator;
  config.rank_hint = flags.rank;
  config.device = flags.device.device;
  config.null_step = absl::Microseconds(flags.device.null_step_us);
  config.gpu = flags.gpu;
  config.gpu_library = flags.device.cuda_library;
  config.record_steps = flags.device.cuda_graphs;
  config.one_shot_all_reduce = flags.device.all_reduce == "one-shot";
  config.threads = flags.threads;
  config.cpus = flags.cpus;
  config.metrics_listen = absl::StrCat(flags.metrics_host, ":", flags.metrics_port);
  config.connect_timeout = absl::Seconds(flags.connect_timeout_s);
  const absl::Status status = RunWorker(config, StopDescriptor());
  if (status.ok()) return 0;
  LogError("worker ends", {{"reason", std::string(status.message())}});
  return 1;
}

}  // namespace lapidary
