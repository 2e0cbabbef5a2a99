#include "worker/model_loader.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/gemm/arithmetic.h"
#include "kernels/thread_team.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"

namespace lapidary {
namespace {

// "auto" is decided by a timing, which may come out differently from rank to rank: rank 0's counts.
absl::StatusOr<std::string> ResolveForGroup(const RunnerOptions& options, Communicator& comm) {
  struct Answer {
    char name[32] = {};  // empty: not possible on rank 0
  };
  Answer own;
  const std::unique_ptr<Stream> stream = CreateCpuStream();
  if (comm.rank().value == 0) {
    stream->Enqueue([&options, &own] {
      const std::unique_ptr<ThreadTeam> team = ThreadTeam::Create(options.threads, options.cpus);
      const std::optional<Arithmetic> resolved =
          ResolveArithmetic(*team, options.compute, options.arith);
      if (resolved.has_value()) absl::SNPrintF(own.name, sizeof own.name, "%s", Name(*resolved));
      return absl::OkStatus();
    });
  }
  std::vector<Answer> all(static_cast<size_t>(comm.size()));
  comm.AllGather(&own, sizeof own, all.data(), *stream);
  RETURN_IF_ERROR(stream->Synchronize());
  const std::string name = all[0].name;
  if (name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("arithmetic \"%s\" is unknown, not of rank 0's CPU, or does not fit the "
                        "compute type",
                        options.arith));
  }
  return name;
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(const ModelRequest& request, Communicator& comm,
                                      const LoadProgress& progress) {
  LoadedModel model;
  ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(request.path));
  const ModelSpec& spec = model.checkpoint->spec();
  ASSIGN_OR_RETURN(const ShardPlan shards, PlanShards(spec, request.size));
  model.vocab = spec.vocab;
  model.model_context = static_cast<int32_t>(std::min<int64_t>(spec.max_context, INT32_MAX));
  for (const LayerSpec& layer : spec.layers) model.window = std::max(model.window, layer.window);

  RunnerOptions options = request.options;
  if (options.max_context == 0) options.max_context = spec.max_context;
  ASSIGN_OR_RETURN(options.arith, ResolveForGroup(options, comm));
  ASSIGN_OR_RETURN(model.runner,
                   ModelRunner::Load(*model.checkpoint, shards.ranks[request.rank.value], options,
                                     comm, progress));
  model.sampler = model.runner->CreateSampler(comm, spec.vocab);
  return model;
}

}  // namespace lapidary
