// Everything a rank needs of a model, loaded: its slices of the weights and what the engine has to
// know about the rest.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
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
  RunnerOptions options;  // max_context 0: the model's
};

struct LoadedModel {
  std::unique_ptr<Checkpoint> checkpoint;  // the runner may keep reading its mapping
  std::unique_ptr<ModelRunner> runner;
  std::unique_ptr<Sampler> sampler;
  int64_t vocab = 0;
  int32_t window = 0;         // of the sliding layers; 0: none
  int32_t model_context = 0;  // tokens the model was made for
};

using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;
// A function, so that a test can run a worker without a checkpoint.
using ModelLoader = std::function<absl::StatusOr<LoadedModel>(
    const ModelRequest& request, Communicator& comm, const LoadProgress& progress)>;

// Opens the checkpoint, plans the shards, reads this rank's. The errors of those three.
absl::StatusOr<LoadedModel> LoadModel(const ModelRequest& request, Communicator& comm,
                                      const LoadProgress& progress);

}  // namespace lapidary
