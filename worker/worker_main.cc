#include "worker/worker_main.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/gpu_module.h"
#include "worker/null_device.h"
#include "worker/worker_session.h"

namespace lapidary {
namespace {

// The kernel ends this process with its parent, and asks afterwards whether that was too late.
absl::Status TieToParent(pid_t parent) {
  if (parent == 0) return absl::OkStatus();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() == parent) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("process %d, which was to be the parent, is not (any more)", parent));
}

absl::Status Validate(const WorkerConfig& config) {
  if (config.threads < 1 || config.threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d threads: 1 to 1024 are possible", config.threads));
  }
  if (!config.cpus.empty() && std::ssize(config.cpus) != config.threads) {
    return absl::InvalidArgumentError(absl::StrFormat("%d CPUs for %d threads: one each is needed",
                                                      config.cpus.size(), config.threads));
  }
  if (config.coordinator.empty()) {
    return absl::InvalidArgumentError("the coordinator's address is missing");
  }
  if (config.device != "auto" && config.device != "cpu" && config.device != "cuda" &&
      config.device != "null") {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s' is no device: auto, cpu, cuda or null", config.device));
  }
  return absl::OkStatus();
}

}  // namespace

bool HasGpu(const std::string& library) {
  if (library.empty()) {  // the libraries are big: first ask for the driver
    void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver == nullptr) return false;
    dlclose(driver);
  }
  const absl::StatusOr<GpuModule*> module = OpenGpuModule(library);
  return module.ok() && !(*module)->Report().gpus.empty();
}

absl::Status RunWorker(const WorkerConfig& asked, int stop_descriptor) {
  WorkerConfig config = asked;
  if (config.device == "auto") config.device = HasGpu(config.gpu_library) ? "cuda" : "cpu";
  if (config.device == "null") {
    return RunWorker(config, stop_descriptor, NullModelLoader({.step = config.null_step}));
  }
  if (config.device == "cuda") {
    // Before anybody is told of this worker: without a GPU it is of no use.
    ASSIGN_OR_RETURN(GpuModule* const module, OpenGpuModule(config.gpu_library));
    const GpuReport report = module->Report();
    if (report.gpus.empty()) {
      return absl::FailedPreconditionError(
          absl::StrFormat("no GPU to use: %s (`lapidary doctor` tells more)", report.problem));
    }
    return RunWorker(config, stop_descriptor,
                     GpuModelLoader({config.gpu, config.gpu_library, config.record_steps,
                                     config.one_shot_all_reduce}));
  }
  return RunWorker(config, stop_descriptor, LoadModel);
}

absl::Status RunWorker(const WorkerConfig& config, int stop_descriptor, const ModelLoader& load) {
  RETURN_IF_ERROR(Validate(config));
  RETURN_IF_ERROR(TieToParent(config.parent_pid));
  WorkerSession session(config, load);
  return session.Run(stop_descriptor);
}

}  // namespace lapidary
