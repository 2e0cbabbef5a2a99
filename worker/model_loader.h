// Everything a rank needs of a model, loaded: its slices of the weights and what the engine has to
// know about the rest.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "worker/comm/communicator.h"
#include "worker/model_runner.h"
#include "worker/sampler.h"

namespace lapidary {

struct ModelRequest {
  std::string path;
  RankId rank;
  int size = 1;
  std::optional<ComputeType> compute;  // absent: the device's best for the file
  RunnerOptions options;               // max_context 0: the model's; compute is `compute`, resolved

  // For devices with a communicator of their own (GPUs).
  //
  // The leader's rendezvous, told to all ranks: rank 0 gives it, the others give "".
  std::function<absl::StatusOr<std::string>(const std::string& own)> share_communicator_id;
  // Not OK once the group has ended: whoever waits for other ranks asks now and then.
  std::function<absl::Status()> ended;
  // A rank or the device is lost while nobody waits for it. From any thread.
  std::function<void(absl::Status)> on_lost;
};

struct LoadedModel {
  std::unique_ptr<Checkpoint> checkpoint;  // the runner may keep reading its mapping
  std::unique_ptr<ModelRunner> runner;
  std::unique_ptr<Sampler> sampler;
  ComputeType compute = ComputeType::kBf16;  // resolved
  int64_t vocab = 0;
  int32_t window = 0;         // of the sliding layers; 0: none
  int32_t model_context = 0;  // tokens the model was made for
};

using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;
// A function, so that a test can run a worker without a checkpoint.
using ModelLoader = std::function<absl::StatusOr<LoadedModel>(
    const ModelRequest& request, Communicator& comm, const LoadProgress& progress)>;

// On the CPU: opens the checkpoint, plans the shards, reads this rank's. The errors of those three.
absl::StatusOr<LoadedModel> LoadModel(const ModelRequest& request, Communicator& comm,
                                      const LoadProgress& progress);

// The same on a GPU.
struct GpuChoice {
  int index = -1;                    // of the device; -1: the rank
  std::string library;               // liblapidary_cuda.so; empty: beside this program
  bool record_steps = true;          // CUDA graphs for decode steps
  bool one_shot_all_reduce = false;  // small sums over peer memory, not by NCCL; rank 0's counts
};
ModelLoader GpuModelLoader(const GpuChoice& choice);

}  // namespace lapidary
