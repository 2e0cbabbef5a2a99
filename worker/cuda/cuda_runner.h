// One rank's model on a GPU.
#pragma once
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "worker/gpu_module.h"

namespace lapidary {

// GpuModule::LoadRunner, once the rank's GPU is the current device. The calling thread is the one
// that will use the runner.
absl::StatusOr<std::unique_ptr<ModelRunner>> LoadCudaRunner(
    const Checkpoint& checkpoint, const RankShard& shard, const RunnerOptions& options,
    const GpuRank& rank, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace lapidary
