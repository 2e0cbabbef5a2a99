// The GPU part of a worker, as a library that is loaded when a GPU is asked for: the program itself
// starts on machines without CUDA, cuBLASLt and NCCL.
//
// liblapidary_cuda.so (worker/cuda/) exports one C function, kGpuModuleSymbol. Library and program
// are of one build: what passes between them are C++ objects.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "worker/model_runner.h"

namespace lapidary {

struct GpuInfo {
  int index = 0;
  std::string name;
  std::string pci;             // bus id
  int compute_capability = 0;  // 80, 89, 90, 100, 120
  int processors = 0;          // streaming multiprocessors
  int64_t total_bytes = 0, free_bytes = 0;
  std::vector<int> peers;  // devices whose memory it can reach
};

// Versions as the libraries number them (13000 is CUDA 13.0); 0: not there.
struct GpuReport {
  int driver_version = 0, runtime_version = 0, nccl_version = 0;
  int64_t cublaslt_version = 0;
  std::string problem;  // why there is no GPU to use; empty: there is
  std::vector<GpuInfo> gpus;
};

// One rank of a group of GPUs. The functions are ModelRequest's.
struct GpuRank {
  int gpu = 0;
  RankId rank;
  int size = 1;
  bool record_steps = true;
  bool one_shot_all_reduce = false;              // rank 0's counts
  std::function<void(const std::string&)> warn;  // served, but not as asked for; may be empty
  std::function<absl::StatusOr<std::string>(const std::string&)> share_communicator_id;
  std::function<absl::Status()> ended;
  std::function<void(absl::Status)> on_lost;
};

class GpuModule {
 public:
  virtual ~GpuModule() = default;
  virtual GpuReport Report() = 0;
  // Loads this rank's slices onto its GPU and meets the other ranks'. FAILED_PRECONDITION when
  // there is no such GPU, RESOURCE_EXHAUSTED when its memory does not suffice, INVALID_ARGUMENT for
  // options that a GPU cannot have. The checkpoint outlives the runner.
  virtual absl::StatusOr<std::unique_ptr<ModelRunner>> LoadRunner(
      const Checkpoint& checkpoint, const RankShard& shard, const RunnerOptions& options,
      const GpuRank& rank, const std::function<void(int64_t, int64_t)>& progress) = 0;
};

// GpuModule* lapidary_gpu_module(const char* version): null for another version than the library's.
inline constexpr char kGpuModuleSymbol[] = "lapidary_gpu_module";
using GpuModuleEntry = GpuModule* (*)(const char* version);

// Loads the library once; it stays. `path` empty: liblapidary_cuda.so beside this program, or in
// ../lib. NOT_FOUND when this build has none, FAILED_PRECONDITION when it cannot be loaded (which
// library is missing), or is of another version.
absl::StatusOr<GpuModule*> OpenGpuModule(const std::string& path);

}  // namespace lapidary
