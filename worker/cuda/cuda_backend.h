// The GPU's backend: the operations of worker/backend.h over CUDA kernels, cuBLASLt and NCCL.
//
// Numbers: the stream is fp32; what enters products is bf16 (or e4m3), their sums fp32, their
// results bf16, logits fp32 (docs/numerics.md). All memory is taken before the first step. What
// goes wrong in an operation sticks to the stream with the operation's name, and EndStep() says it.
//
//   cuda_backend.cc       the graph's operations     cuda_backend_init.cc  what they need before
//   cuda_products.cc      which product runs where   cuda_workspace.cc     activations and scratch
//   cuda_graphs.cc        steps recorded, replayed   cuda_batch.cc         a step's description
//
// Owner: the engine thread.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/chip.h"
#include "kernels/moe/moe_cuda.h"
#include "worker/backend.h"
#include "worker/cuda/cublas_lt.h"
#include "worker/cuda/cuda_batch.h"
#include "worker/cuda/cuda_graphs.h"
#include "worker/cuda/cuda_products.h"
#include "worker/cuda/cuda_stream.h"
#include "worker/cuda/cuda_weights.h"
#include "worker/cuda/cuda_workspace.h"
#include "worker/cuda/gpu_kv.h"
#include "worker/cuda/nccl_communicator.h"
#include "worker/rope_set.h"

namespace lapidary {

struct CudaBackendOptions {
  ComputeType compute = ComputeType::kBf16;  // kBf16 or kFp8
  std::string kv_format = "auto", kv_type = "auto";
  int64_t max_step_tokens = 512;
  int64_t max_running = 64;
  int64_t max_logits_rows = 64;
  int64_t max_context = 8192;
  bool record_steps = true;
};

class CudaBackend final : public Backend {
 public:
  // On the current device. stream and comm (null for one rank) outlive the backend.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(const ModelWeights& geometry,
                                                             const CudaBackendOptions& options,
                                                             const Chip& chip, CudaStream& stream,
                                                             NcclCommunicator* comm);
  // After the weights: algorithms for all products, and the staging memory goes.
  absl::Status FinishLoading(const ModelWeights& model);

  absl::StatusOr<int64_t> MatrixBytes(const MatrixSource& source) const override {
    return weights_.MatrixBytes(source);
  }
  absl::StatusOr<MatrixHandle> AddMatrix(const MatrixSource& source) override {
    return weights_.AddMatrix(source);
  }
  absl::StatusOr<VectorHandle> AddVector(const std::vector<float>& values) override {
    return weights_.AddVector(values);
  }
  absl::Status AddPleTable(const StoredTensor& table) override {
    return weights_.AddPleTable(table);
  }
  int64_t weights_bytes() const override { return weights_.bytes(); }

  absl::StatusOr<Activation> Allocate(int64_t rows, int64_t width, ActivationRole role) override {
    return workspace_.Allocate(rows, width, role);
  }
  int64_t workspace_bytes() const override {
    return workspace_.bytes() + uploader_.device_bytes() + products_.workspace_bytes();
  }
  int64_t page_bytes(KvFamily family) const override { return kv_.page_bytes(family); }
  absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>& pages) override;

  absl::StatusOr<BatchRef> Upload(const HostBatch& batch) override;
  SampledIds sampled_ids() override;
  absl::StatusOr<StepMode> BeginStep(const BatchRef& batch) override;
  absl::Status EndStep() override;
  absl::StatusOr<BatchRef> NextWarmUpStep() override;

  BatchRef KeepWanted(const BatchRef& batch) override;
  void KeepWantedRows(const BatchRef& batch, Activation data) override;
  void Embed(const BatchRef& batch, const ModelWeights& model, Activation x) override;
  void PleInputs(const BatchRef& batch, const ModelWeights& model, Activation x,
                 Activation ple) override;
  void NormQkv(const BatchRef& batch, const LayerWeights& layer, Activation x,
               Activation qkv) override;
  void NormRopeWrite(const BatchRef& batch, const LayerWeights& layer, Activation qkv) override;
  void Attend(const BatchRef& batch, const LayerWeights& layer, Activation qkv,
              Activation attended) override;
  void OutputProduct(const BatchRef& batch, const LayerWeights& layer, Activation attended,
                     Activation partial) override;
  void AddNormed(const BatchRef& batch, const LayerWeights& layer, VectorHandle norm,
                 Activation partial, float scalar, Activation x) override;
  void GatedMlp(const BatchRef& batch, const LayerWeights& layer, Activation x,
                Activation partial) override;
  void Router(const BatchRef& batch, const LayerWeights& layer, Activation x) override;
  void Experts(const BatchRef& batch, const LayerWeights& layer, Activation x,
               Activation partial) override;
  void CombineMoe(const BatchRef& batch, const LayerWeights& layer, Activation partial,
                  float scalar, Activation x) override;
  void PleMix(const BatchRef& batch, const LayerWeights& layer, const PleWeights& weights,
              Activation ple, float scalar, Activation x) override;
  void FinalNorm(const BatchRef& batch, const ModelWeights& model, Activation x,
                 Activation hidden) override;
  void Head(const ModelWeights& model, Activation hidden, int64_t first, int64_t rows,
            Activation logits) override;
  void AllReduce(Activation data, int64_t rows) override;
  void Inspect(Activation data, int64_t rows, int64_t columns,
               std::function<void(const float*)> see) override;
  Stream& stream() override { return stream_; }

 private:
  CudaBackend(const CudaBackendOptions& options, const Chip& chip, CudaStream& stream,
              NcclCommunicator* comm);
  absl::Status Init(const ModelWeights& geometry);
  absl::Status MakeRotations(const ModelWeights& geometry);
  absl::Status ChooseAttention(const ModelWeights& geometry);
  absl::Status TakeScratch(const ModelWeights& geometry);
  absl::Status MakeUploader(const ModelWeights& geometry, const std::vector<int64_t>& buckets);

  void TurnPositions(const CudaBatch& batch);
  GpuAttentionParams AttentionOf(const CudaBatch& batch, const LayerWeights& layer,
                                 Activation attended) const;
  // x, normed and in the form that the matrix multiplies.
  ProductInput Normed(int64_t rows, VectorHandle norm, float eps, Activation x, GpuNumber number);
  // x rounded to bf16, as it is.
  ProductInput Rounded(int64_t rows, Activation x);
  void AddNormedRows(int64_t rows, const __nv_bfloat16* f, int64_t f_stride, VectorHandle norm,
                     float eps, float scalar, Activation x);

  const CudaBackendOptions options_;
  const Chip chip_;
  CudaStream& stream_;
  NcclCommunicator* const comm_;

  CudaWeights weights_;
  GpuKv kv_;
  CudaWorkspace workspace_;
  CudaProducts products_;
  BatchUploader uploader_;
  CudaGraphs graphs_;
  int64_t warmed_up_ = 0;  // steps; the first is not recorded: libraries and kernels load lazily
  DeviceBuffer sampled_ids_;
  std::shared_ptr<CudaBatch> part_;  // of the batch uploaded last

  // Rotations: cosines and sines of the step's positions, per kind.
  struct Rotation {
    int pairs = 0;
    float* frequency = nullptr;  // [pairs]
    float* cos_sin = nullptr;    // [tokens, 2 pairs]
  };
  std::vector<int> rope_of_;  // by layer
  std::vector<Rotation> rotations_;

  // Which attention kernels a layer's shape runs on.
  struct AttentionChoice {
    bool tuned_decode = false, tuned_prefill = false;
    int block_tokens = 0;  // of a prefill block
  };
  std::vector<AttentionChoice> attention_;  // by layer
  uint8_t* decode_workspace_ = nullptr;

  // Scratch. Strides in elements.
  int64_t max_tokens_ = 0;  // with padding
  int64_t hidden_stride_ = 0, mlp_stride_ = 0;
  __nv_bfloat16* normed_ = nullptr;  // [T, hidden_stride]
  __nv_bfloat16* query_ = nullptr;   // packed for the pages
  __nv_bfloat16* mlp_ = nullptr;     // [T, mlp_stride]
  uint8_t* gathered_ = nullptr;
  int64_t query_row_bytes_ = 0;  // of the layer whose queries were finished last
  struct MoeScratch {
    int64_t experts = 0, top_k = 0, gated_stride = 0;
    int32_t *chosen = nullptr, *begin = nullptr, *token_of = nullptr, *slot_of = nullptr;
    float *weight = nullptr, *logits = nullptr;
    __nv_bfloat16 *gated = nullptr, *out = nullptr;  // [slots, ...]
  } moe_;
  int64_t ple_projected_stride_ = 0, ple_gate_stride_ = 0;
  __nv_bfloat16 *ple_projected_ = nullptr, *ple_gate_ = nullptr, *ple_gated_ = nullptr;
};

}  // namespace lapidary
