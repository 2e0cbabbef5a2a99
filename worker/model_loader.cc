#include "worker/model_loader.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/gemm/arithmetic.h"
#include "kernels/thread_team.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "worker/gpu_module.h"

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

// What every device needs before it loads.
struct Prepared {
  LoadedModel model;  // without runner and sampler
  RankShard shard;
  RunnerOptions options;
};
absl::StatusOr<Prepared> Prepare(const ModelRequest& request) {
  Prepared prepared;
  LoadedModel& model = prepared.model;
  ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(request.path));
  const ModelSpec& spec = model.checkpoint->spec();
  ASSIGN_OR_RETURN(ShardPlan shards, PlanShards(spec, request.size));
  prepared.shard = std::move(shards.ranks[static_cast<size_t>(request.rank.value)]);
  model.vocab = spec.vocab;
  model.model_context = static_cast<int32_t>(std::min<int64_t>(spec.max_context, INT32_MAX));
  for (const LayerSpec& layer : spec.layers) model.window = std::max(model.window, layer.window);
  prepared.options = request.options;
  if (prepared.options.max_context == 0) prepared.options.max_context = spec.max_context;
  return prepared;
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(const ModelRequest& request, Communicator& comm,
                                      const LoadProgress& progress) {
  ASSIGN_OR_RETURN(Prepared prepared, Prepare(request));
  LoadedModel& model = prepared.model;
  model.compute = request.compute.value_or(model.checkpoint->quantized() ? ComputeType::kInt8
                                                                         : ComputeType::kBf16);
  prepared.options.compute = model.compute;
  ASSIGN_OR_RETURN(prepared.options.arith, ResolveForGroup(prepared.options, comm));
  ASSIGN_OR_RETURN(model.runner, ModelRunner::Load(*model.checkpoint, prepared.shard,
                                                   prepared.options, comm, progress));
  ASSIGN_OR_RETURN(model.sampler, model.runner->CreateSampler(comm, model.vocab));
  return std::move(model);
}

ModelLoader GpuModelLoader(const GpuChoice& choice) {
  return [choice](const ModelRequest& request, Communicator& comm,
                  const LoadProgress& progress) -> absl::StatusOr<LoadedModel> {
    ASSIGN_OR_RETURN(GpuModule* const gpu, OpenGpuModule(choice.library));
    ASSIGN_OR_RETURN(Prepared prepared, Prepare(request));
    LoadedModel& model = prepared.model;
    model.compute = request.compute.value_or(ComputeType::kBf16);
    prepared.options.compute = model.compute;
    GpuRank rank;
    rank.gpu = choice.index >= 0 ? choice.index : request.rank.value;
    rank.rank = request.rank;
    rank.size = request.size;
    rank.record_steps = choice.record_steps;
    rank.one_shot_all_reduce = choice.one_shot_all_reduce;
    rank.warn = [](const std::string& what) { LogWarning(what); };
    rank.share_communicator_id = request.share_communicator_id;
    rank.ended = request.ended;
    rank.on_lost = request.on_lost;
    ASSIGN_OR_RETURN(model.runner, gpu->LoadRunner(*model.checkpoint, prepared.shard,
                                                   prepared.options, rank, progress));
    ASSIGN_OR_RETURN(model.sampler, model.runner->CreateSampler(comm, model.vocab));
    return std::move(model);
  };
}

}  // namespace lapidary
