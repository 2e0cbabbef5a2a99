// A whole group in this process: scheduler, and on each rank executor, model and sampler. Driven to
// the end of all its requests by one thread.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/scheduler.h"
#include "model/checkpoint.h"
#include "worker/comm/communicator.h"
#include "worker/executor.h"
#include "worker/model_runner.h"
#include "worker/sampler.h"

namespace lapidary {

// What one request brought.
struct EngineAnswer {
  std::vector<ScoredToken> tokens;
  std::vector<ScoredToken> prompt_scored;
  FinishReason finish = FinishReason::kNone;
  int32_t cached_tokens = 0;
};

// How the group computes; what must not change a token.
struct EngineSettings {
  int32_t max_running = 256;
  int32_t max_step_tokens = 512;
  int32_t max_in_flight = 1;
  bool prefix_cache = false;
  std::array<int32_t, kKvFamilies> pages = {4096, 4096};  // 0 where the model has no such layers
};

class EngineHarness {
 public:
  static constexpr int32_t kMaxContext = 1024;

  // Loads all ranks of a group. `options` without its limits: those are the largest of any
  // settings.
  static absl::StatusOr<std::unique_ptr<EngineHarness>> Create(const Checkpoint& checkpoint,
                                                               int ranks, RunnerOptions options);

  // Computes all requests with an engine of these settings. Each is submitted when the clock, which
  // counts turns of the engine's loop, reaches its submit_time. By request id.
  absl::StatusOr<std::map<uint64_t, EngineAnswer>> Run(const EngineSettings& settings,
                                                       std::vector<EngineRequest> requests);
  // Of the last Run.
  const EngineStats& stats() const { return stats_; }

 private:
  EngineHarness() = default;

  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<ModelRunner>> runners_;
  std::vector<std::unique_ptr<Sampler>> samplers_;
  std::array<bool, kKvFamilies> has_family_ = {false, false};
  int64_t vocab_ = 0;
  int32_t window_ = 0;
  EngineStats stats_;
};

}  // namespace lapidary
