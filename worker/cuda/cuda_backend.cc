#include "worker/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "common/status_macros.h"
#include "kernels/attention/norm_rope_write_cuda.h"
#include "kernels/elementwise/rms_norm_cuda.h"
#include "kernels/elementwise/row_ops_cuda.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

using Bf16 = __nv_bfloat16;

Bf16* Halves(Activation a) { return static_cast<Bf16*>(a.data); }
float* Floats(Activation a) { return static_cast<float*>(a.data); }
const CudaBatch& Cuda(const BatchRef& ref) { return static_cast<const CudaBatch&>(*ref); }

}  // namespace

CudaBackend::CudaBackend(const CudaBackendOptions& options, const Chip& chip, CudaStream& stream,
                         NcclCommunicator* comm)
    : options_(options),
      chip_(chip),
      stream_(stream),
      comm_(comm),
      weights_(options.compute, stream),
      workspace_(stream),
      products_(chip, stream),
      graphs_(stream) {}

// -- Steps.

absl::StatusOr<BatchRef> CudaBackend::Upload(const HostBatch& host) {
  ASSIGN_OR_RETURN(BatchUploader::Uploaded uploaded, uploader_.Upload(host, stream_));
  part_ = std::move(uploaded.part);
  return BatchRef(std::move(uploaded.whole));
}

SampledIds CudaBackend::sampled_ids() {
  return {sampled_ids_.data<TokenId>(), static_cast<int32_t>(options_.max_step_tokens)};
}

absl::StatusOr<Backend::StepMode> CudaBackend::BeginStep(const BatchRef& ref) {
  const CudaBatch& batch = Cuda(ref);
  if (!options_.record_steps || !batch.decode_only) return StepMode::kEnqueue;
  if (graphs_.Replay(batch.tokens)) {
    RETURN_IF_ERROR(stream_.failed());
    return StepMode::kReplayed;
  }
  if (batch.record) graphs_.BeginRecording(batch.tokens);
  return StepMode::kEnqueue;
}

absl::Status CudaBackend::EndStep() {
  if (graphs_.recording()) graphs_.EndRecording();
  return stream_.failed();
}

absl::StatusOr<BatchRef> CudaBackend::NextWarmUpStep() {
  // The largest as it is, then each recorded, largest first.
  const std::vector<int64_t>& buckets = uploader_.buckets();
  const auto steps = options_.record_steps ? std::ssize(buckets) + 1 : 1;
  if (warmed_up_ >= steps) return BatchRef();
  const int64_t back = std::max<int64_t>(0, warmed_up_ - 1);
  ASSIGN_OR_RETURN(std::shared_ptr<CudaBatch> batch,
                   uploader_.Padding(buckets[buckets.size() - 1 - back], stream_));
  batch->record = warmed_up_++ > 0;
  return BatchRef(std::move(batch));
}

BatchRef CudaBackend::KeepWanted(const BatchRef&) {
  TurnPositions(*part_);
  return part_;
}

void CudaBackend::KeepWantedRows(const BatchRef& ref, Activation data) {
  const CudaBatch& batch = Cuda(ref);
  const ActivationInfo& info = workspace_.Info(data);
  // Of the qkv product only the queries are read from here on, and they have been packed.
  const bool queries = info.role == ActivationRole::kQkv;
  void* const rows = queries ? static_cast<void*>(query_) : data.data;
  const int64_t row_bytes = queries ? query_row_bytes_ : info.stride * info.element_bytes();
  const GatherRowsParams p{.in = rows,
                           .in_stride_bytes = row_bytes,
                           .out = gathered_,
                           .out_stride_bytes = row_bytes,
                           .row_of = batch.wanted_tokens,
                           .rows = batch.wanted,
                           .row_bytes = row_bytes};
  stream_.Check("gather_rows", LaunchGatherRows(p, stream_.raw()));
  if (batch.wanted == 0) return;
  stream_.Check("gather_rows",
                cudaMemcpyAsync(rows, gathered_, static_cast<size_t>(batch.wanted * row_bytes),
                                cudaMemcpyDeviceToDevice, stream_.raw()));
}

void CudaBackend::TurnPositions(const CudaBatch& batch) {
  for (const Rotation& rotation : rotations_) {
    const RotationParams p{.positions = batch.positions,
                           .frequency = rotation.frequency,
                           .cos_sin = rotation.cos_sin,
                           .tokens = batch.tokens,
                           .pairs = rotation.pairs};
    stream_.Check("rotation", LaunchRotation(p, stream_.raw()));
  }
}

// -- Embeddings.

void CudaBackend::Embed(const BatchRef& ref, const ModelWeights& model, Activation x) {
  const CudaBatch& batch = Cuda(ref);
  const ResolveIdsParams ids{.known = batch.known_ids,
                             .sampled_from = batch.sampled_from,
                             .sampled = sampled_ids_.data<int32_t>(),
                             .ids = batch.ids,
                             .tokens = batch.tokens};
  stream_.Check("resolve_ids", LaunchResolveIds(ids, stream_.raw()));
  EmbedParams p;
  p.ids = batch.ids;
  if (model.head) {
    const GpuMatrix& head = weights_.matrix(model.head).gpu;
    p.table = static_cast<const Bf16*>(head.data);
    p.table_stride = head.k_stride;
    p.vocab_rows = head.n;
  }
  p.first_id = model.vocab.begin;
  p.scale = model.embedding_scale;
  p.x = Floats(x);
  p.x_stride = workspace_.Info(x).stride;
  p.tokens = batch.tokens;
  p.dim = model.hidden;
  stream_.Check("embed", LaunchEmbed(p, stream_.raw()));
  TurnPositions(batch);
}

void CudaBackend::PleInputs(const BatchRef& ref, const ModelWeights& model, Activation x,
                            Activation ple) {
  const CudaBatch& batch = Cuda(ref);
  const PleWeights& w = model.ple;
  const GpuMatrix& projection = weights_.matrix(w.projection).gpu;
  const ProductInput in = Rounded(batch.tokens, x);
  products_.Multiply("ple_projection", projection, in, batch.tokens,
                     {.y = ple_projected_, .stride = ple_projected_stride_});
  MixEmbeddingsParams p;
  p.ids = batch.ids;
  p.projected = ple_projected_;
  p.projected_stride = ple_projected_stride_;
  p.table = static_cast<const Bf16*>(weights_.ple_table());
  p.table_rows = weights_.ple_rows();
  p.w = weights_.vector(w.norm);
  p.projection_scale = w.projection_scale;
  p.table_scale = w.table_scale;
  p.eps = model.norm_eps;
  p.ple = Floats(ple);
  p.ple_stride = workspace_.Info(ple).stride;
  p.tokens = batch.tokens;
  p.layers = w.layers;
  p.dim = w.dim;
  stream_.Check("mix_embeddings", LaunchMixEmbeddings(p, stream_.raw()));
}

void CudaBackend::PleMix(const BatchRef& ref, const LayerWeights& layer, const PleWeights& weights,
                         Activation ple, float scalar, Activation x) {
  const int64_t rows = ref->tokens;
  products_.Multiply("ple_gate", weights_.matrix(layer.ple_gate).gpu, Rounded(rows, x), rows,
                     {.y = ple_gate_, .stride = ple_gate_stride_});
  GateEmbeddingParams p;
  p.gate = ple_gate_;
  p.gate_stride = ple_gate_stride_;
  p.ple = Floats(ple);
  p.ple_stride = workspace_.Info(ple).stride;
  p.first = int64_t{layer.index} * weights.dim;
  p.out = ple_gated_;
  p.out_stride = ple_gate_stride_;
  p.rows = rows;
  p.dim = weights.dim;
  stream_.Check("gate_embedding", LaunchGateEmbedding(p, stream_.raw()));
  products_.Multiply("ple_output", weights_.matrix(layer.ple_projection).gpu,
                     {.x = ple_gated_, .stride = ple_gate_stride_}, rows,
                     {.y = normed_, .stride = hidden_stride_});
  AddNormedRows(rows, normed_, hidden_stride_, layer.ple_post_norm, layer.norm_eps, scalar, x);
}

// -- Attention.

void CudaBackend::NormQkv(const BatchRef& ref, const LayerWeights& layer, Activation x,
                          Activation qkv) {
  const GpuMatrix& w = weights_.matrix(layer.qkv).gpu;
  const ProductInput in = Normed(ref->tokens, layer.input_norm, layer.norm_eps, x, w.number);
  products_.Multiply("qkv", w, in, ref->tokens,
                     {.y = qkv.data, .stride = workspace_.Info(qkv).stride});
}

void CudaBackend::NormRopeWrite(const BatchRef& ref, const LayerWeights& layer, Activation qkv) {
  const CudaBatch& batch = Cuda(ref);
  const FamilyBatch& family = batch.families[static_cast<int>(layer.spec.kind)];
  NormRopeWriteParams p;
  p.layout = kv_.layout(layer);
  p.qkv = Halves(qkv);
  p.qkv_stride = workspace_.Info(qkv).stride;
  p.tokens = batch.tokens;
  p.q_heads = layer.q_heads;
  p.kv_heads = batch.is_part ? 0 : layer.kv_heads;
  p.k_eq_v = layer.spec.k_eq_v;
  p.v_norm = layer.v_norm;
  p.eps = layer.norm_eps;
  p.query_scale = static_cast<float>(layer.attention_scale);
  p.q_norm = weights_.vector(layer.q_norm);
  p.k_norm = weights_.vector(layer.k_norm);
  p.key_weight = p.k_norm;  // folded pages are read by their owner alone
  const Rotation& rotation = rotations_[rope_of_[layer.index]];
  p.cos_sin = rotation.cos_sin;
  p.pairs = rotation.pairs;
  p.query = query_;
  p.page_of = family.page_of;
  p.positions = batch.positions;
  p.pool = kv_.pool(layer.spec.kind);
  p.page_bytes = kv_.page_bytes(layer.spec.kind);
  p.layer_offset = kv_.offset(layer);
  query_row_bytes_ = int64_t{layer.q_heads} * p.layout.score_columns() * 2;
  stream_.Check("norm_rope_write", LaunchNormRopeWrite(p, stream_.raw()));
}

GpuAttentionParams CudaBackend::AttentionOf(const CudaBatch& batch, const LayerWeights& layer,
                                            Activation attended) const {
  GpuAttentionParams p;
  p.layout = kv_.layout(layer);
  p.query = query_;
  p.out = Halves(attended);
  p.out_stride = workspace_.Info(attended).stride;
  p.q_heads = layer.q_heads;
  p.kv_heads = static_cast<int>(layer.group_begin.size()) - 1;
  for (size_t h = 0; h < layer.group_begin.size(); ++h) {
    p.group_begin[h] = static_cast<int16_t>(layer.group_begin[h]);
  }
  p.window = layer.spec.window;
  p.page_table = batch.families[static_cast<int>(layer.spec.kind)].page_table;
  p.pool = kv_.pool(layer.spec.kind);
  p.page_bytes = kv_.page_bytes(layer.spec.kind);
  p.layer_offset = kv_.offset(layer);
  return p;
}

void CudaBackend::Attend(const BatchRef& ref, const LayerWeights& layer, Activation,
                         Activation attended) {
  const CudaBatch& batch = Cuda(ref);
  const FamilyBatch& family = batch.families[static_cast<int>(layer.spec.kind)];
  const GpuAttentionParams p = AttentionOf(batch, layer, attended);
  const AttentionChoice& choice = attention_[layer.index];
  if (batch.decode_runs > 0) {
    if (choice.tuned_decode) {
      const DecodePlan plan = PlanDecode(p, batch.decode_runs, chip_);
      stream_.Check("paged_decode", LaunchPagedDecode(p, family.decode, batch.decode_runs, plan,
                                                      decode_workspace_, chip_, stream_.raw()));
    } else {
      stream_.Check("paged_generic", LaunchPagedGeneric(p, family.decode, batch.decode_runs,
                                                        batch.decode_runs, stream_.raw()));
    }
  }
  if (batch.prefill_runs > 0) {
    if (choice.tuned_prefill) {
      const CudaBatch::Blocks& blocks = batch.BlocksOf(choice.block_tokens);
      stream_.Check("paged_prefill", LaunchPagedPrefill(p, family.prefill, blocks.blocks,
                                                        blocks.count, chip_, stream_.raw()));
    } else {
      stream_.Check("paged_generic", LaunchPagedGeneric(p, family.prefill, batch.prefill_runs,
                                                        batch.tokens, stream_.raw()));
    }
  }
}

void CudaBackend::OutputProduct(const BatchRef& ref, const LayerWeights& layer, Activation attended,
                                Activation partial) {
  products_.Multiply("attention_output", weights_.matrix(layer.output).gpu, Halves(attended),
                     workspace_.Info(attended).stride, ref->tokens,
                     {.y = partial.data, .stride = workspace_.Info(partial).stride});
}

// -- Norms.

ProductInput CudaBackend::Normed(int64_t rows, VectorHandle norm, float eps, Activation x,
                                 GpuNumber number) {
  RmsNormParams p;
  p.x = Floats(x);
  p.x_stride = workspace_.Info(x).stride;
  p.w = weights_.vector(norm);
  p.rows = rows;
  p.dim = x.width;
  p.eps = eps;
  ProductInput in;
  if (number == GpuNumber::kE4m3) {
    p.y_e4m3 = products_.codes();
    p.y_scale = products_.code_scales();
    p.y_stride = CudaProducts::CodesStride(x.width);
    in = {.x = p.y_e4m3, .stride = p.y_stride, .scale = p.y_scale};
  } else {
    p.y_bf16 = normed_;
    p.y_stride = hidden_stride_;
    in = {.x = normed_, .stride = hidden_stride_};
  }
  stream_.Check("rms_norm", LaunchRmsNorm(p, stream_.raw()));
  return in;
}

ProductInput CudaBackend::Rounded(int64_t rows, Activation x) {
  RoundRowsParams p;
  p.x = Floats(x);
  p.x_stride = workspace_.Info(x).stride;
  p.y = normed_;
  p.y_stride = hidden_stride_;
  p.rows = rows;
  p.dim = x.width;
  stream_.Check("round_rows", LaunchRoundRows(p, stream_.raw()));
  return {.x = normed_, .stride = hidden_stride_};
}

void CudaBackend::AddNormedRows(int64_t rows, const Bf16* f, int64_t f_stride, VectorHandle norm,
                                float eps, float scalar, Activation x) {
  AddNormedParams p;
  p.f = f;
  p.f_stride = f_stride;
  p.w = weights_.vector(norm);
  p.x = Floats(x);
  p.x_stride = workspace_.Info(x).stride;
  p.rows = rows;
  p.dim = x.width;
  p.eps = eps;
  p.scalar = scalar;
  stream_.Check("add_normed", LaunchAddNormed(p, stream_.raw()));
}

void CudaBackend::AddNormed(const BatchRef& ref, const LayerWeights& layer, VectorHandle norm,
                            Activation partial, float scalar, Activation x) {
  AddNormedRows(ref->tokens, Halves(partial), workspace_.Info(partial).stride, norm, layer.norm_eps,
                scalar, x);
}

void CudaBackend::CombineMoe(const BatchRef& ref, const LayerWeights& layer, Activation partial,
                             float scalar, Activation x) {
  const ActivationInfo& pair = workspace_.Info(partial);
  AddNormedPairParams p;
  p.dense = Halves(partial);
  p.experts = Halves(partial) + pair.half;
  p.f_stride = pair.stride;
  p.w_dense = weights_.vector(layer.moe.dense_post_norm);
  p.w_experts = weights_.vector(layer.moe.expert_post_norm);
  p.w = weights_.vector(layer.post_mlp_norm);
  p.x = Floats(x);
  p.x_stride = workspace_.Info(x).stride;
  p.rows = ref->tokens;
  p.dim = x.width;
  p.eps = layer.norm_eps;
  p.scalar = scalar;
  stream_.Check("add_normed_pair", LaunchAddNormedPair(p, stream_.raw()));
}

void CudaBackend::FinalNorm(const BatchRef& ref, const ModelWeights& model, Activation x,
                            Activation hidden) {
  const CudaBatch& batch = Cuda(ref);
  RmsNormParams p;
  p.x = Floats(x);
  p.x_stride = workspace_.Info(x).stride;
  p.row_of = batch.wanted_tokens;
  p.w = weights_.vector(model.final_norm);
  p.rows = batch.wanted;
  p.dim = x.width;
  p.eps = model.norm_eps;
  p.y_bf16 = Halves(hidden);
  p.y_stride = workspace_.Info(hidden).stride;
  stream_.Check("rms_norm", LaunchRmsNorm(p, stream_.raw()));
}

// -- MLP and experts.

void CudaBackend::GatedMlp(const BatchRef& ref, const LayerWeights& layer, Activation x,
                           Activation partial) {
  const int64_t rows = ref->tokens;
  const ActivationInfo& out = workspace_.Info(partial);
  if (!layer.down) {  // no columns on this rank
    stream_.Check("clear", cudaMemset2DAsync(partial.data, static_cast<size_t>(out.stride * 2), 0,
                                             static_cast<size_t>(x.width * 2),
                                             static_cast<size_t>(rows), stream_.raw()));
    return;
  }
  const GpuMatrix& gate_up = weights_.matrix(layer.gate_up).gpu;
  const ProductInput in = Normed(rows, layer.pre_mlp_norm, layer.norm_eps, x, gate_up.number);
  products_.Gated("gate_up", gate_up, in, rows, mlp_, mlp_stride_, layer.mlp_width);
  products_.Multiply("mlp_down", weights_.matrix(layer.down).gpu, mlp_, mlp_stride_, rows,
                     {.y = partial.data, .stride = out.stride});
}

void CudaBackend::Router(const BatchRef& ref, const LayerWeights& layer, Activation x) {
  const CudaWeights::Matrix& router = weights_.matrix(layer.moe.router);
  RouterParams p;
  p.x = Floats(x);
  p.x_stride = workspace_.Info(x).stride;
  p.norm_weight = weights_.vector(layer.moe.router_scale);
  p.w = router.fp32;
  p.w_stride = router.fp32_stride;
  p.factor = weights_.vector(layer.moe.per_expert_scale);
  p.eps = layer.norm_eps;
  p.tokens = ref->tokens;
  p.dim = x.width;
  p.experts = static_cast<int>(router.outputs);
  p.top_k = static_cast<int>(moe_.top_k);
  p.logits = moe_.logits;
  p.chosen = moe_.chosen;
  p.weight = moe_.weight;
  stream_.Check("router", LaunchRouter(p, stream_.raw()));
}

void CudaBackend::Experts(const BatchRef& ref, const LayerWeights& layer, Activation x,
                          Activation partial) {
  const MoeWeights& moe = layer.moe;
  const int64_t tokens = ref->tokens, slots = tokens * moe_.top_k;
  const ActivationInfo& out = workspace_.Info(partial);
  ExpertSortParams sort;
  sort.chosen = moe_.chosen;
  sort.tokens = tokens;
  sort.top_k = static_cast<int>(moe_.top_k);
  sort.first_expert = static_cast<int>(moe.experts.begin);
  sort.experts = static_cast<int>(moe.experts.size());
  sort.begin = moe_.begin;
  sort.token_of = moe_.token_of;
  sort.slot_of = moe_.slot_of;
  stream_.Check("expert_sort", LaunchExpertSort(sort, stream_.raw()));

  if (sort.experts > 0) {
    GroupedParams up;
    up.w = weights_.matrix(moe.gate_up[0]).gpu;
    up.experts = sort.experts;
    up.begin = moe_.begin;
    up.row_of = moe_.token_of;
    up.in = Normed(tokens, moe.expert_pre_norm, layer.norm_eps, x, up.w.number);
    up.out = {
        .y = moe_.gated, .stride = moe_.gated_stride, .epilogue = ProductEpilogue::kGatedGelu};
    up.max_slots = slots;
    up.expected_slots = std::max<int64_t>(1, slots * sort.experts / moe_.experts);
    stream_.Check("expert_gate_up",
                  LaunchGroupedProduct(up, PlanGrouped(up, chip_), chip_, stream_.raw()));
    GroupedParams down;
    down.w = weights_.matrix(moe.down[0]).gpu;
    down.experts = sort.experts;
    down.begin = moe_.begin;
    down.in = {.x = moe_.gated, .stride = moe_.gated_stride};
    if (down.w.number == GpuNumber::kE4m3) {
      down.in = products_.Quantized(moe_.gated, moe_.gated_stride, slots, down.w.k);
    }
    down.out = {.y = moe_.out, .stride = hidden_stride_};
    down.max_slots = slots;
    down.expected_slots = up.expected_slots;
    stream_.Check("expert_down",
                  LaunchGroupedProduct(down, PlanGrouped(down, chip_), chip_, stream_.raw()));
  }
  ExpertCombineParams combine;
  combine.out = moe_.out;
  combine.out_stride = hidden_stride_;
  combine.slot_of = moe_.slot_of;
  combine.weight = moe_.weight;
  combine.tokens = tokens;
  combine.dim = x.width;
  combine.top_k = sort.top_k;
  combine.y = Halves(partial) + out.half;
  combine.y_stride = out.stride;
  stream_.Check("expert_combine", LaunchExpertCombine(combine, stream_.raw()));
}

// -- Head and collectives.

void CudaBackend::Head(const ModelWeights& model, Activation hidden, int64_t first, int64_t rows,
                       Activation logits) {
  if (!model.head || rows == 0) return;
  const int64_t stride = workspace_.Info(hidden).stride;
  products_.Multiply("head", weights_.matrix(model.head).gpu,
                     {.x = Halves(hidden) + first * stride, .stride = stride}, rows,
                     {.y = logits.data,
                      .stride = workspace_.Info(logits).stride,
                      .epilogue = ProductEpilogue::kFp32,
                      .softcap = model.softcap});
}

void CudaBackend::AllReduce(Activation data, int64_t rows) {
  if (comm_ == nullptr) return;
  const ActivationInfo& info = workspace_.Info(data);
  if (info.fp32) {
    comm_->AllReduceSum(Floats(data), rows * info.stride, stream_);
  } else {
    comm_->AllReduceSumBf16(data.data, rows * info.stride, stream_);
  }
}

void CudaBackend::Inspect(Activation data, int64_t rows, int64_t columns,
                          std::function<void(const float*)> see) {
  const ActivationInfo& info = workspace_.Info(data);
  const int64_t bytes = rows * info.stride * info.element_bytes();
  std::vector<uint8_t> raw(static_cast<size_t>(bytes));
  if (absl::Status s = stream_.Synchronize(); !s.ok()) {
    stream_.Fail(std::move(s));
    return;
  }
  stream_.Check("reading an activation",
                cudaMemcpy(raw.data(), data.data, raw.size(), cudaMemcpyDeviceToHost));
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      // The second half of a pair begins where it is aligned.
      const int64_t half_width = info.width / 2;
      const int64_t place = info.half > 0 && c >= half_width ? info.half + c - half_width : c;
      const uint8_t* const at = raw.data() + (r * info.stride + place) * info.element_bytes();
      float v = 0;
      if (info.fp32) {
        std::copy_n(at, 4, reinterpret_cast<uint8_t*>(&v));
      } else {
        Bf16 h;
        std::copy_n(at, 2, reinterpret_cast<uint8_t*>(&h));
        v = __bfloat162float(h);
      }
      values[static_cast<size_t>(r * columns + c)] = v;
    }
  }
  see(values.data());
}

}  // namespace lapidary
