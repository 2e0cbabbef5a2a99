#include "cli/local_serving.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/signals.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "worker/gpu_module.h"
#include "worker/worker_main.h"

namespace lapidary {
namespace {

std::vector<std::string> CoordinatorArgs(const ServeFlags& flags) {
  const EngineFlags& e = flags.engine;
  const ListenFlags& l = flags.listen;
  std::vector<std::string> args = {e.model_path,
                                   "--tp",
                                   absl::StrCat(e.tensor_parallel),
                                   "--compute",
                                   e.compute,
                                   "--arith",
                                   e.arith,
                                   "--max-context",
                                   absl::StrCat(e.max_context),
                                   "--max-running",
                                   absl::StrCat(e.max_running),
                                   "--max-step-tokens",
                                   absl::StrCat(e.max_step_tokens),
                                   "--max-queued",
                                   absl::StrCat(e.max_queued),
                                   "--max-queued-tokens",
                                   absl::StrCat(e.max_queued_tokens),
                                   "--kv-format",
                                   e.kv_format,
                                   "--kv-type",
                                   e.kv_type,
                                   e.prefix_cache ? "--prefix-cache" : "--no-prefix-cache",
                                   "--max-in-flight",
                                   absl::StrCat(e.max_in_flight),
                                   "--step-time-target",
                                   absl::StrCat(e.step_time_target_ms),
                                   "--host",
                                   l.host,
                                   "--port",
                                   absl::StrCat(l.port),
                                   "--metrics-port",
                                   absl::StrCat(l.metrics_port),
                                   "--slow-reader-bytes",
                                   absl::StrCat(l.slow_reader_bytes),
                                   "--slow-reader-timeout",
                                   absl::StrCat(l.slow_reader_timeout_s),
                                   "--drain-timeout",
                                   absl::StrCat(flags.drain_timeout_s)};
  if (e.kv_bytes > 0) args.insert(args.end(), {"--kv-memory", absl::StrCat(e.kv_bytes)});
  if (!e.served_model_name.empty()) {
    args.insert(args.end(), {"--served-model-name", e.served_model_name});
  }
  for (const auto& [name, weight] : e.tenant_weights) {
    args.insert(args.end(), {"--tenant-weight", absl::StrCat(name, "=", weight)});
  }
  if (l.insecure) args.push_back("--insecure");
  if (!l.reflection) args.push_back("--no-reflection");
  if (!l.vllm_metrics) args.push_back("--no-vllm-metrics");
  return args;
}

// Every GPU that can have a share of the model; 1 on a CPU.
int DefaultRanks(const ModelSpec& spec, const DeviceFlags& device) {
  const bool may_be_gpus =
      device.device == "cuda" || (device.device == "auto" && HasGpu(device.cuda_library));
  if (!may_be_gpus) return 1;
  const absl::StatusOr<GpuModule*> module = OpenGpuModule(device.cuda_library);
  if (!module.ok()) return 1;  // the worker says why
  auto ranks = static_cast<int>((*module)->Report().gpus.size());
  while (ranks > 1 && !PlanShards(spec, ranks).ok()) --ranks;
  return std::max(ranks, 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalCluster>> StartLocalCluster(const ServeFlags& flags,
                                                                const LogFlags& log, bool quiet) {
  ServeFlags resolved = flags;
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(flags.engine.model_path, error);
  if (!error) resolved.engine.model_path = absolute.lexically_normal().string();
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Checkpoint> checkpoint,
      Checkpoint::Open(resolved.engine.model_path,
                       CheckpointOptions{.require_tensors = flags.device.device != "null"}));
  int& ranks = resolved.engine.tensor_parallel;
  if (ranks == 0) ranks = DefaultRanks(checkpoint->spec(), flags.device);
  RETURN_IF_ERROR(PlanShards(checkpoint->spec(), ranks).status());

  LocalClusterOptions options;
  options.coordinator_args = CoordinatorArgs(resolved);
  const std::vector<std::string> log_args = {"--log-level", quiet ? "error" : log.level,
                                             "--log-format", log.format};
  options.coordinator_args.insert(options.coordinator_args.end(), log_args.begin(), log_args.end());
  options.worker_args = log_args;
  const DeviceFlags& device = flags.device;
  options.worker_args.insert(
      options.worker_args.end(),
      {"--device", device.device, "--null-step-us", absl::StrCat(device.null_step_us),
       device.cuda_graphs ? "--cuda-graphs" : "--no-cuda-graphs", "--all-reduce",
       device.all_reduce});
  if (!device.cuda_library.empty()) {
    options.worker_args.insert(options.worker_args.end(), {"--cuda-library", device.cuda_library});
  }
  options.ranks = resolved.engine.tensor_parallel;
  options.threads_per_rank = flags.threads;
  const auto progress = [quiet](std::string_view word) {
    if (!quiet) std::fprintf(stderr, "%.*s\n", static_cast<int>(word.size()), word.data());
  };
  return LocalCluster::Start(options, progress, [] { return StopRequested(); });
}

int AskServerOrOwn(const GenerateFlags& flags,
                   const std::function<absl::Status(const std::string& address)>& ask) {
  std::unique_ptr<LocalCluster> own;
  std::string address = flags.server;
  if (address.empty()) {
    if (flags.local.engine.model_path.empty()) {
      return Fail(absl::InvalidArgumentError(
          "say which model: its path, or --server HOST:PORT for a running server"));
    }
    ServeFlags serve = flags.local;
    serve.listen.port = 0;
    serve.listen.metrics_port = 0;
    absl::StatusOr<std::unique_ptr<LocalCluster>> started =
        StartLocalCluster(serve, LogFlags{}, /*quiet=*/true);
    if (!started.ok()) return absl::IsCancelled(started.status()) ? 130 : Fail(started.status());
    own = *std::move(started);
    address = absl::StrCat("127.0.0.1:", own->port());
  }
  const absl::Status status = ask(address);
  if (own != nullptr) {
    if (const absl::Status stopped = own->Stop(absl::Seconds(10)); !stopped.ok()) {
      std::fprintf(stderr, "lapidary: while stopping: %s\n",
                   std::string(stopped.message()).c_str());
    }
  }
  return status.ok() ? 0 : absl::IsCancelled(status) ? 130 : Fail(status);
}

}  // namespace lapidary
