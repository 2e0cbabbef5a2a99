// The CPU backend: packed weights, fp32 activations, pages as docs/kv-cache.md describes them.
#pragma once
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/thread_team.h"
#include "worker/backend.h"
#include "worker/comm/communicator.h"
#include "worker/cpu_backend_matrix.h"
#include "worker/kv_choice.h"
#include "worker/mapped_ranges.h"

namespace lapidary {

struct CpuBackendOptions {
  ComputeType compute = ComputeType::kBf16;
  CpuArithmetic arithmetic;
  KvChoice kv;
  int64_t max_step_tokens = 512;
  MappedRanges mapped;  // of the checkpoint, if its pages are to be given back
};

// `geometry` is DescribeWeights of the model and the shard that will be loaded. stream, team and
// comm outlive the backend; the team's first thread is the stream's.
std::unique_ptr<Backend> CreateCpuBackend(const ModelWeights& geometry,
                                          const CpuBackendOptions& options, Stream& stream,
                                          ThreadTeam& team, Communicator& comm);

}  // namespace lapidary
