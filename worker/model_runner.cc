#include "worker/model_runner.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/gemm/arithmetic.h"
#include "worker/cpu_backend.h"
#include "worker/gemma_forward.h"
#include "worker/sampler.h"
#include "worker/weights.h"

namespace lapidary {
namespace {

absl::Status Validate(const Checkpoint& checkpoint, const RunnerOptions& options) {
  if (options.threads < 1 || options.max_step_tokens < 1 || options.max_logits_rows < 1) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "threads %d, tokens per step %d, rows of logits %d: each must be at least 1",
        options.threads, options.max_step_tokens, options.max_logits_rows));
  }
  if (options.compute == ComputeType::kFp8) {
    return absl::InvalidArgumentError("fp8 compute is for GPUs; use bf16, fp32 or int8 on a CPU");
  }
  if (options.compute == ComputeType::kInt8 && !checkpoint.quantized()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "int8 compute needs a quantised file, %s has no quantised tensor; use bf16 or fp32",
        checkpoint.path()));
  }
  return absl::OkStatus();
}

// What the group's one choice means for each kind of weights.
CpuArithmetic Spread(ComputeType compute, Arithmetic resolved) {
  CpuArithmetic a{BestInt8(), BestFma(), BestFma(), false};
  if (compute == ComputeType::kInt8) {
    a.quantized = resolved;
  } else {
    a.floating = resolved;
    if (resolved != Arithmetic::kDotBf16) a.exact = resolved;
  }
  a.round_to_bf16 = compute == ComputeType::kBf16;
  return a;
}

class CpuModelRunner final : public ModelRunner {
 public:
  ~CpuModelRunner() override {
    // What is still enqueued reads the members below.
    (void)stream_->Synchronize();
  }

  absl::Status Init(const Checkpoint& checkpoint, const RankShard& shard,
                    const RunnerOptions& options, Communicator& comm,
                    const std::function<void(int64_t, int64_t)>& progress) {
    RETURN_IF_ERROR(Validate(checkpoint, options));
    // The stream's thread is the team's first, so it creates (and pins) the team.
    std::optional<Arithmetic> resolved;
    stream_->Enqueue([&] {
      team_ = ThreadTeam::Create(options.threads, options.cpus);
      resolved = ResolveArithmetic(*team_, options.compute, options.arith);
      return absl::OkStatus();
    });
    RETURN_IF_ERROR(stream_->Synchronize());
    if (!resolved.has_value()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "arithmetic \"%s\" is unknown, not of this CPU, or does not fit the compute type",
          options.arith));
    }
    arith_ = Name(*resolved);

    ASSIGN_OR_RETURN(const KvChoice kv,
                     ChooseKv(options.kv_format, options.kv_type, options.compute));
    const ModelWeights geometry = DescribeWeights(checkpoint.spec(), shard);
    backend_ = CreateCpuBackend(geometry,
                                {.compute = options.compute,
                                 .arithmetic = Spread(options.compute, *resolved),
                                 .kv = kv,
                                 .max_step_tokens = options.max_step_tokens,
                                 .mapped = MappedRanges::OfThisProcess()},
                                *stream_, *team_, comm);
    ASSIGN_OR_RETURN(weights_, LoadWeights(checkpoint, shard, *backend_, progress));
    ASSIGN_OR_RETURN(forward_, GemmaForward::Create(weights_, options, *backend_));
    return absl::OkStatus();
  }

  int64_t weights_bytes() const override { return backend_->weights_bytes(); }
  int64_t workspace_bytes() const override { return backend_->workspace_bytes(); }
  int64_t page_bytes(KvFamily family) const override { return backend_->page_bytes(family); }
  absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>& pages) override {
    return backend_->AllocateKv(pages);
  }
  absl::Status Forward(const HostBatch& batch) override { return forward_->Enqueue(batch); }
  LogitsView logits() const override { return forward_->logits(); }
  void EnqueueLogits(int64_t first_row) override { forward_->EnqueueLogits(first_row); }
  Stream& stream() override { return *stream_; }
  SampledIds sampled_ids() override { return backend_->sampled_ids(); }
  absl::StatusOr<std::unique_ptr<Sampler>> CreateSampler(Communicator& comm,
                                                         int64_t vocab) override {
    return Sampler::Create(*team_, comm, vocab);
  }
  const std::string& resolved_arith() const override { return arith_; }
  void set_probe(Probe probe) override { forward_->set_probe(std::move(probe)); }

 private:
  std::string arith_;
  ModelWeights weights_;
  std::unique_ptr<ThreadTeam> team_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<GemmaForward> forward_;
  std::unique_ptr<Stream> stream_ = CreateCpuStream();  // destroyed first: its thread uses the rest
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Load(
    const Checkpoint& checkpoint, const RankShard& shard, const RunnerOptions& options,
    Communicator& comm, const std::function<void(int64_t, int64_t)>& progress) {
  auto runner = std::make_unique<CpuModelRunner>();
  RETURN_IF_ERROR(runner->Init(checkpoint, shard, options, comm, progress));
  return absl::StatusOr<std::unique_ptr<ModelRunner>>(std::move(runner));
}

}  // namespace lapidary
