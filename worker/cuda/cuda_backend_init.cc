// What the GPU's backend prepares before the first step.
#include <algorithm>
#include <set>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/attention/paged_attention_cuda.h"
#include "worker/cuda/cuda_backend.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

using Bf16 = __nv_bfloat16;

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

int LargestGroup(const LayerWeights& layer) {
  int largest = 0;
  for (size_t h = 0; h + 1 < layer.group_begin.size(); ++h) {
    largest = std::max(largest, layer.group_begin[h + 1] - layer.group_begin[h]);
  }
  return largest;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(const ModelWeights& geometry,
                                                                 const CudaBackendOptions& options,
                                                                 const Chip& chip,
                                                                 CudaStream& stream,
                                                                 NcclCommunicator* comm) {
  if (options.compute != ComputeType::kBf16 && options.compute != ComputeType::kFp8) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a GPU computes in bf16 or fp8, not in %s", Name(options.compute)));
  }
  std::unique_ptr<CudaBackend> backend(new CudaBackend(options, chip, stream, comm));
  RETURN_IF_ERROR(backend->Init(geometry));
  return backend;
}

absl::Status CudaBackend::Init(const ModelWeights& geometry) {
  ASSIGN_OR_RETURN(kv_, GpuKv::Plan(geometry.layers, options_.kv_format, options_.kv_type));
  const std::vector<int64_t> buckets = CudaGraphs::Buckets(options_.max_running);
  max_tokens_ = std::max(options_.max_step_tokens, buckets.back());
  workspace_.set_hidden(geometry.hidden);
  RETURN_IF_ERROR(MakeRotations(geometry));
  RETURN_IF_ERROR(ChooseAttention(geometry));
  RETURN_IF_ERROR(TakeScratch(geometry));
  RETURN_IF_ERROR(MakeUploader(geometry, buckets));
  ASSIGN_OR_RETURN(sampled_ids_,
                   DeviceBuffer::Allocate(2 * options_.max_step_tokens * 4, "sampled ids"));
  return CudaError(
      "clearing", cudaMemsetAsync(sampled_ids_.data(), 0, static_cast<size_t>(sampled_ids_.bytes()),
                                  stream_.raw()));
}

absl::Status CudaBackend::MakeRotations(const ModelWeights& geometry) {
  RopeSet ropes;
  for (const LayerWeights& layer : geometry.layers) rope_of_.push_back(ropes.Add(layer.spec));
  for (const RopeSet::Entry& entry : ropes.entries()) {
    Rotation rotation{.pairs = entry.pairs()};
    ASSIGN_OR_RETURN(rotation.frequency,
                     workspace_.Scratch<float>(entry.pairs(), "rotation frequencies"));
    ASSIGN_OR_RETURN(rotation.cos_sin,
                     workspace_.Scratch<float>(max_tokens_ * 2 * entry.pairs(), "rotations"));
    if (entry.pairs() > 0) {
      RETURN_IF_CUDA_ERROR("rotation frequencies",
                           cudaMemcpyAsync(rotation.frequency, entry.frequency.data(),
                                           entry.frequency.size() * sizeof(float),
                                           cudaMemcpyHostToDevice, stream_.raw()));
    }
    rotations_.push_back(rotation);
  }
  return stream_.Synchronize();  // the host's tables go
}

absl::Status CudaBackend::ChooseAttention(const ModelWeights& geometry) {
  int64_t bytes = 0;
  for (const LayerWeights& layer : geometry.layers) {
    const GpuKvLayout& layout = kv_.layout(layer);
    const int group = LargestGroup(layer);
    if (std::ssize(layer.group_begin) - 1 > GpuAttentionParams::kMaxKvHeads) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "layer %d: %d kv heads on a rank, a GPU's attention takes %d", layer.index,
          layer.group_begin.size() - 1, GpuAttentionParams::kMaxKvHeads));
    }
    AttentionChoice choice;
    choice.tuned_decode = DecodeKernelTakes(layout, group, chip_);
    choice.tuned_prefill = PrefillKernelTakes(layout, chip_);
    if (choice.tuned_prefill) choice.block_tokens = PrefillBlockTokens(layout, group, chip_);
    attention_.push_back(choice);
    if (!choice.tuned_decode) continue;
    GpuAttentionParams p;
    p.layout = layout;
    p.q_heads = layer.q_heads;
    p.kv_heads = static_cast<int>(layer.group_begin.size()) - 1;
    for (size_t h = 0; h < layer.group_begin.size(); ++h) {
      p.group_begin[h] = static_cast<int16_t>(layer.group_begin[h]);
    }
    p.window = layer.spec.window;
    for (int64_t rows = 1; rows <= max_tokens_; ++rows) {
      bytes = std::max(bytes, PlanDecode(p, static_cast<int>(rows), chip_).workspace_bytes);
    }
  }
  ASSIGN_OR_RETURN(decode_workspace_, workspace_.Scratch<uint8_t>(bytes, "attention"));
  return absl::OkStatus();
}

absl::Status CudaBackend::TakeScratch(const ModelWeights& geometry) {
  const int64_t rows = CublasLt::PaddedRows(max_tokens_);
  hidden_stride_ = RoundUp(geometry.hidden, 16);
  int64_t mlp = 0, query = 0, gathered = hidden_stride_ * 4, widest_input = geometry.hidden;
  for (const LayerWeights& layer : geometry.layers) {
    mlp = std::max(mlp, layer.mlp_width);
    query = std::max<int64_t>(query, int64_t{layer.q_heads} * kv_.layout(layer).score_columns());
    widest_input = std::max({widest_input, layer.q_width(), layer.mlp_width});
  }
  mlp_stride_ = RoundUp(mlp, 16);
  ASSIGN_OR_RETURN(normed_, workspace_.Scratch<Bf16>(rows * hidden_stride_, "norms"));
  ASSIGN_OR_RETURN(query_, workspace_.Scratch<Bf16>(rows * query, "queries"));
  ASSIGN_OR_RETURN(mlp_, workspace_.Scratch<Bf16>(rows * mlp_stride_, "MLP"));

  const bool fp8 = options_.compute == ComputeType::kFp8;
  CudaProducts::Sizes sizes{.rows = rows, .gate_up = GatedRows(mlp)};
  if (fp8) {
    sizes.code_rows = rows;
    sizes.code_bytes = rows * CudaProducts::CodesStride(widest_input);
  }
  if (geometry.moe.experts > 0) {
    const int64_t slots = CublasLt::PaddedRows(rows * geometry.moe.top_k);
    moe_.experts = geometry.moe.experts;
    moe_.top_k = geometry.moe.top_k;
    moe_.gated_stride = RoundUp(geometry.moe.expert_width, 16);
    ASSIGN_OR_RETURN(moe_.chosen, workspace_.Scratch<int32_t>(slots, "chosen experts"));
    ASSIGN_OR_RETURN(moe_.weight, workspace_.Scratch<float>(slots, "chosen experts"));
    ASSIGN_OR_RETURN(moe_.logits, workspace_.Scratch<float>(rows * moe_.experts, "router"));
    ASSIGN_OR_RETURN(moe_.begin, workspace_.Scratch<int32_t>(moe_.experts + 1, "experts"));
    ASSIGN_OR_RETURN(moe_.token_of, workspace_.Scratch<int32_t>(slots, "experts"));
    ASSIGN_OR_RETURN(moe_.slot_of, workspace_.Scratch<int32_t>(slots, "experts"));
    ASSIGN_OR_RETURN(moe_.gated, workspace_.Scratch<Bf16>(slots * moe_.gated_stride, "experts"));
    ASSIGN_OR_RETURN(moe_.out, workspace_.Scratch<Bf16>(slots * hidden_stride_, "experts"));
    if (fp8) {
      sizes.code_rows = std::max(sizes.code_rows, slots);
      sizes.code_bytes =
          std::max(sizes.code_bytes, slots * CudaProducts::CodesStride(geometry.moe.expert_width));
    }
  }
  if (geometry.ple.dim > 0) {
    ple_projected_stride_ = RoundUp(geometry.ple.layers * geometry.ple.dim, 16);
    ple_gate_stride_ = RoundUp(geometry.ple.dim, 16);
    gathered = std::max(gathered, ple_projected_stride_ * 4);
    ASSIGN_OR_RETURN(ple_projected_, workspace_.Scratch<Bf16>(rows * ple_projected_stride_,
                                                              "per-layer embeddings"));
    ASSIGN_OR_RETURN(ple_gate_, workspace_.Scratch<Bf16>(rows * ple_gate_stride_, "PLE gates"));
    ASSIGN_OR_RETURN(ple_gated_, workspace_.Scratch<Bf16>(rows * ple_gate_stride_, "PLE gates"));
  }
  gathered = std::max(gathered, query * 2);
  ASSIGN_OR_RETURN(gathered_, workspace_.Scratch<uint8_t>(rows * gathered, "gathered rows"));
  return products_.Init(workspace_, sizes);
}

absl::Status CudaBackend::MakeUploader(const ModelWeights& geometry,
                                       const std::vector<int64_t>& buckets) {
  BatchUploader::Options options;
  options.limits.max_tokens = options_.max_step_tokens;
  options.limits.sampled_ids = 2 * options_.max_step_tokens;
  std::array<bool, kKvFamilies> all_keys = {};
  for (const LayerWeights& layer : geometry.layers) {
    const int f = static_cast<int>(layer.spec.kind);
    options.limits.used[f] = true;
    // A family's oldest readable key: that of its widest window.
    all_keys[f] = all_keys[f] || layer.spec.window == 0;
    options.limits.windows[f] =
        all_keys[f] ? 0 : std::max(options.limits.windows[f], layer.spec.window);
  }
  options.max_table_entries =
      options_.max_running * ((options_.max_context + kPageTokens - 1) / kPageTokens + 1);
  std::set<int> cuts;
  for (const AttentionChoice& choice : attention_) {
    if (choice.block_tokens > 0) cuts.insert(choice.block_tokens);
  }
  options.block_tokens.assign(cuts.begin(), cuts.end());
  options.buckets = buckets;
  ASSIGN_OR_RETURN(uploader_, BatchUploader::Create(options));
  return absl::OkStatus();
}

absl::Status CudaBackend::FinishLoading(const ModelWeights& model) {
  weights_.FinishLoading();
  const auto prepare = [&](MatrixHandle h, int64_t x_stride, int64_t y_stride,
                           ProductEpilogue epilogue) -> absl::Status {
    if (!h) return absl::OkStatus();
    const GpuMatrix& w = weights_.matrix(h).gpu;
    if (w.number == GpuNumber::kE4m3) x_stride = CudaProducts::CodesStride(w.k);
    return products_.Prepare(
        w, x_stride, {.stride = y_stride, .epilogue = epilogue},
        epilogue == ProductEpilogue::kFp32 ? options_.max_logits_rows : max_tokens_);
  };
  int64_t qkv = 0, attended = 0;
  for (const LayerWeights& layer : model.layers) {
    qkv = std::max(qkv, layer.qkv_width());
    attended = std::max(attended, layer.q_width());
  }
  constexpr ProductEpilogue kPlain = ProductEpilogue::kBf16;
  const int64_t summand = model.moe.experts > 0 ? 2 * hidden_stride_ : hidden_stride_;
  for (const LayerWeights& layer : model.layers) {
    RETURN_IF_ERROR(prepare(layer.qkv, hidden_stride_, RoundUp(qkv, 16), kPlain));
    RETURN_IF_ERROR(prepare(layer.output, RoundUp(attended, 16), hidden_stride_, kPlain));
    RETURN_IF_ERROR(prepare(layer.gate_up, hidden_stride_, products_.gate_up_stride(), kPlain));
    RETURN_IF_ERROR(prepare(layer.down, mlp_stride_, summand, kPlain));
    RETURN_IF_ERROR(prepare(layer.ple_gate, hidden_stride_, ple_gate_stride_, kPlain));
    RETURN_IF_ERROR(prepare(layer.ple_projection, ple_gate_stride_, hidden_stride_, kPlain));
  }
  RETURN_IF_ERROR(prepare(model.ple.projection, hidden_stride_, ple_projected_stride_, kPlain));
  RETURN_IF_ERROR(
      prepare(model.head, hidden_stride_, RoundUp(model.vocab.size(), 16), ProductEpilogue::kFp32));
  return stream_.Synchronize();
}

absl::Status CudaBackend::AllocateKv(const std::array<int32_t, kKvFamilies>& pages) {
  RETURN_IF_ERROR(kv_.Allocate(pages));
  uploader_.set_pages(pages);
  return absl::OkStatus();
}

}  // namespace lapidary
