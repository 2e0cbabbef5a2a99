#include "worker/cuda/cuda_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_backend.h"
#include "worker/cuda/cuda_sampler.h"
#include "worker/cuda/cuda_status.h"
#include "worker/cuda/cuda_stream.h"
#include "worker/cuda/nccl_communicator.h"
#include "worker/gemma_forward.h"
#include "worker/weights.h"

namespace lapidary {
namespace {

absl::StatusOr<Chip> ThisChip() {
  int device = 0, major = 0, minor = 0;
  Chip chip;
  RETURN_IF_CUDA_ERROR("the current GPU", cudaGetDevice(&device));
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    return CudaError("asking the GPU", cudaDeviceGetAttribute(value, attribute, device));
  };
  RETURN_IF_ERROR(get(&major, cudaDevAttrComputeCapabilityMajor));
  RETURN_IF_ERROR(get(&minor, cudaDevAttrComputeCapabilityMinor));
  RETURN_IF_ERROR(get(&chip.processors, cudaDevAttrMultiProcessorCount));
  RETURN_IF_ERROR(get(&chip.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin));
  chip.compute_capability = 10 * major + minor;
  if (chip.compute_capability < 80) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "GPU %d has compute capability %d.%d; 8.0 (Ampere) is the least", device, major, minor));
  }
  return chip;
}

class CudaModelRunner final : public ModelRunner {
 public:
  ~CudaModelRunner() override {
    // What is still enqueued reads the members below; a sum that waits for a lost rank ends first.
    if (comm_ != nullptr && lost_) comm_->Abort("the runner ends");
    if (stream_ != nullptr) (void)stream_->Synchronize();
  }

  absl::Status Init(const Checkpoint& checkpoint, const RankShard& shard,
                    const RunnerOptions& options, const GpuRank& rank,
                    const std::function<void(int64_t, int64_t)>& progress) {
    ASSIGN_OR_RETURN(const Chip chip, ThisChip());
    arith_ = absl::StrFormat("sm_%d", chip.compute_capability);
    processors_ = chip.processors;
    if (options.arith != "auto" && !options.arith.empty() && options.arith != arith_) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "arithmetic \"%s\" is a CPU's; on this GPU it is %s", options.arith, arith_));
    }
    ASSIGN_OR_RETURN(stream_, CudaStream::Create());
    if (rank.size > 1) RETURN_IF_ERROR(MeetOthers(rank));
    const ModelWeights geometry = DescribeWeights(checkpoint.spec(), shard);
    CudaBackendOptions backend;
    backend.compute = options.compute;
    backend.kv_format = options.kv_format;
    backend.kv_type = options.kv_type;
    backend.max_step_tokens = options.max_step_tokens;
    backend.max_running = options.max_running;
    backend.max_logits_rows = options.max_logits_rows;
    backend.max_context = options.max_context;
    backend.record_steps = rank.record_steps;
    ASSIGN_OR_RETURN(backend_, CudaBackend::Create(geometry, backend, chip, *stream_, comm_.get()));
    ASSIGN_OR_RETURN(weights_, LoadWeights(checkpoint, shard, *backend_, progress));
    RETURN_IF_ERROR(backend_->FinishLoading(weights_));
    ASSIGN_OR_RETURN(forward_, GemmaForward::Create(weights_, options, *backend_));
    max_logits_rows_ = options.max_logits_rows;
    return absl::OkStatus();
  }

  int64_t weights_bytes() const override { return backend_->weights_bytes(); }
  int64_t workspace_bytes() const override { return backend_->workspace_bytes() + sampler_bytes_; }
  // What is left, less what graphs, libraries and fragments will want.
  int64_t default_kv_bytes() const override {
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
    const auto spare = std::max<int64_t>(int64_t{256} << 20, static_cast<int64_t>(total / 16));
    return std::max<int64_t>(0, static_cast<int64_t>(free) - spare);
  }
  int64_t page_bytes(KvFamily family) const override { return backend_->page_bytes(family); }
  absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>& pages) override {
    RETURN_IF_ERROR(backend_->AllocateKv(pages));
    return forward_->WarmUp();
  }
  absl::Status Forward(const HostBatch& batch) override { return forward_->Enqueue(batch); }
  LogitsView logits() const override { return forward_->logits(); }
  void EnqueueLogits(int64_t first_row) override { forward_->EnqueueLogits(first_row); }
  Stream& stream() override { return *stream_; }
  SampledIds sampled_ids() override { return backend_->sampled_ids(); }
  absl::StatusOr<std::unique_ptr<Sampler>> CreateSampler(Communicator&, int64_t vocab) override {
    CudaSamplerConfig config;
    config.vocab = vocab;
    config.max_rows = max_logits_rows_;
    config.processors = processors_;
    ASSIGN_OR_RETURN(auto sampler, CudaSampler::Create(comm_.get(), config));
    sampler_bytes_ = sampler->device_bytes();
    return absl::StatusOr<std::unique_ptr<Sampler>>(std::move(sampler));
  }
  const std::string& resolved_arith() const override { return arith_; }
  void set_probe(Probe probe) override { forward_->set_probe(std::move(probe)); }
  void Abort(const std::string& reason) override {
    lost_ = true;
    if (comm_ != nullptr) comm_->Abort(reason);
  }

 private:
  absl::Status MeetOthers(const GpuRank& rank) {
    std::string own;
    if (rank.rank.value == 0) {
      ASSIGN_OR_RETURN(own, NewNcclId());
      own.push_back(rank.one_shot_all_reduce ? '1' : '0');
    }
    NcclOptions options;
    // How ranks sum is rank 0's choice: they must not differ in it.
    ASSIGN_OR_RETURN(options.id, rank.share_communicator_id(own));
    options.one_shot = !options.id.empty() && options.id.back() == '1';
    if (!options.id.empty()) options.id.pop_back();
    options.warn = rank.warn;
    options.rank = rank.rank;
    options.size = rank.size;
    options.ended = rank.ended;
    options.on_lost = rank.on_lost;
    ASSIGN_OR_RETURN(comm_, NcclCommunicator::Create(options));
    stream_->set_guard([comm = comm_.get()] { return comm->Ended(); });
    return absl::OkStatus();
  }

  std::string arith_;
  int max_logits_rows_ = 1;
  int processors_ = 1;
  int64_t sampler_bytes_ = 0;
  std::atomic<bool> lost_{false};
  std::unique_ptr<CudaStream> stream_;
  std::unique_ptr<NcclCommunicator> comm_;  // null: one rank
  ModelWeights weights_;
  std::unique_ptr<CudaBackend> backend_;
  std::unique_ptr<GemmaForward> forward_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> LoadCudaRunner(
    const Checkpoint& checkpoint, const RankShard& shard, const RunnerOptions& options,
    const GpuRank& rank, const std::function<void(int64_t, int64_t)>& progress) {
  auto runner = std::make_unique<CudaModelRunner>();
  RETURN_IF_ERROR(runner->Init(checkpoint, shard, options, rank, progress));
  return absl::StatusOr<std::unique_ptr<ModelRunner>>(std::move(runner));
}

}  // namespace lapidary
