// Between the coordinator's messages and the engine's plain structs.
#pragma once
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/dtype.h"
#include "engine/scheduler.h"
#include "lapidary/cluster/v1/cluster.pb.h"

namespace lapidary {

// A request as the engine takes it, but that `deadline` still counts from its submission: the
// leader, who has the clock, adds it. Ids beyond 31 bits become -1, which the engine refuses below.
EngineRequest FromMessage(const cluster::v1::Submit& submit);

// INVALID_ARGUMENT for a token outside the vocabulary or sampling values no request can have: what
// would otherwise surface on every rank in the middle of a step. Drops suppressed ids that the
// vocabulary does not have: they come from checkpoints, not from clients.
absl::Status CheckRequest(int64_t vocab, EngineRequest* request);

// All events of a step in one message.
cluster::v1::StepEvents ToMessage(uint64_t step, const std::vector<EngineEvent>& events);
// The same into an old message, whose memory is used again.
void FillMessage(uint64_t step, const std::vector<EngineEvent>& events,
                 cluster::v1::StepEvents* message);
cluster::v1::Load ToMessage(const EngineStats& stats);

// "fp32", "bf16", "int8".
absl::StatusOr<ComputeType> ParseComputeType(std::string_view name);

}  // namespace lapidary
