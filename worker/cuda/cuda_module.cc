// What liblapidary_cuda.so exports: one function.
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstring>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_runner.h"
#include "worker/cuda/cuda_status.h"
#include "worker/gpu_module.h"

namespace lapidary {
namespace {

absl::StatusOr<GpuInfo> Describe(int index, int count) {
  GpuInfo info{.index = index};
  cudaDeviceProp properties;
  RETURN_IF_CUDA_ERROR("asking the GPU", cudaGetDeviceProperties(&properties, index));
  info.name = properties.name;
  info.compute_capability = 10 * properties.major + properties.minor;
  info.processors = properties.multiProcessorCount;
  info.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  char bus[32] = {};
  RETURN_IF_CUDA_ERROR("asking the GPU", cudaDeviceGetPCIBusId(bus, sizeof bus, index));
  info.pci = bus;
  for (int other = 0; other < count; ++other) {
    int reachable = 0;
    if (other != index && cudaDeviceCanAccessPeer(&reachable, index, other) == cudaSuccess &&
        reachable != 0) {
      info.peers.push_back(other);
    }
  }
  RETURN_IF_CUDA_ERROR("choosing the GPU", cudaSetDevice(index));
  size_t free = 0, total = 0;
  RETURN_IF_CUDA_ERROR("asking the GPU", cudaMemGetInfo(&free, &total));
  info.free_bytes = static_cast<int64_t>(free);
  return info;
}

class CudaModule final : public GpuModule {
 public:
  GpuReport Report() override {
    GpuReport report;
    (void)cudaDriverGetVersion(&report.driver_version);
    (void)cudaRuntimeGetVersion(&report.runtime_version);
    (void)ncclGetVersion(&report.nccl_version);
    report.cublaslt_version = static_cast<int64_t>(cublasLtGetVersion());
    int count = 0;
    const cudaError_t counted = cudaGetDeviceCount(&count);
    if (counted == cudaErrorInsufficientDriver || counted == cudaErrorStubLibrary) {
      report.problem =
          absl::StrFormat("the NVIDIA driver is missing or older than CUDA %d.%d wants",
                          report.runtime_version / 1000, report.runtime_version % 1000 / 10);
    } else if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0)) {
      report.problem = "the driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)";
    } else if (counted != cudaSuccess) {
      report.problem = std::string(CudaError("counting GPUs", counted).message());
    }
    for (int i = 0; report.problem.empty() && i < count; ++i) {
      absl::StatusOr<GpuInfo> info = Describe(i, count);
      if (!info.ok()) {
        report.problem = std::string(info.status().message());
      } else {
        report.gpus.push_back(*std::move(info));
      }
    }
    return report;
  }

  absl::StatusOr<std::unique_ptr<ModelRunner>> LoadRunner(
      const Checkpoint& checkpoint, const RankShard& shard, const RunnerOptions& options,
      const GpuRank& rank, const std::function<void(int64_t, int64_t)>& progress) override {
    int count = 0;
    RETURN_IF_CUDA_ERROR("counting GPUs", cudaGetDeviceCount(&count));
    if (rank.gpu < 0 || rank.gpu >= count) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "rank %d is to use GPU %d, there are %d (--gpu chooses, CUDA_VISIBLE_DEVICES hides)",
          rank.rank.value, rank.gpu, count));
    }
    RETURN_IF_CUDA_ERROR("choosing the GPU", cudaSetDevice(rank.gpu));
    return LoadCudaRunner(checkpoint, shard, options, rank, progress);
  }
};

}  // namespace
}  // namespace lapidary

extern "C" __attribute__((visibility("default"))) lapidary::GpuModule* lapidary_gpu_module(
    const char* version) {
  if (std::strcmp(version, LAPIDARY_VERSION) != 0) return nullptr;
  static auto& module = *new lapidary::CudaModule;
  return &module;
}
