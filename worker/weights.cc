#include "worker/weights.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "worker/backend.h"

namespace lapidary {
namespace {

constexpr int kMaxHeadDim = 1024;  // what the attention kernels have scratch for

Range Times(Range r, int64_t unit) { return {r.begin * unit, r.end * unit}; }
Range Shifted(Range r, int64_t by) { return {r.begin + by, r.end + by}; }

// What is to be loaded where. Filled first, so that the total is known before a byte is read.
struct MatrixJob {
  MatrixSource source;
  MatrixHandle* target;
};
struct VectorJob {
  const StoredTensor* tensor;
  float plus;  // target = (stored + plus) * times
  float times;
  VectorHandle* target;  // or
  float* number;         // a single value
};

class WeightPlan {
 public:
  WeightPlan(const Checkpoint& checkpoint, const RankShard& shard, ModelWeights& weights)
      : checkpoint_(checkpoint), spec_(checkpoint.spec()), shard_(shard), weights_(weights) {}

  absl::Status Build() {
    const int64_t m = spec_.hidden;
    Matrix("embed_tokens.weight", spec_.vocab, m, shard_.vocab, {0, m}, &weights_.head, true);
    Norm("norm.weight", m, &weights_.final_norm);
    if (weights_.ple.dim > 0) {
      const int64_t width = weights_.ple.layers * weights_.ple.dim;
      weights_.ple.table = Get("embed_tokens_per_layer.weight", spec_.ple_vocab, width);
      Matrix("per_layer_model_projection.weight", width, m, {0, width}, {0, m},
             &weights_.ple.projection, true);
      Norm("per_layer_projection_norm.weight", weights_.ple.dim, &weights_.ple.norm);
    }
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      prefix_ = absl::StrCat("layers.", i, ".");
      Attention(weights_.layers[i], shard_.layers[i]);
      Mlp(weights_.layers[i], shard_.layers[i]);
      if (spec_.moe.experts > 0) Experts(weights_.layers[i].moe);
      if (spec_.ple_dim > 0) Ple(weights_.layers[i]);
      if (spec_.layer_scalar) {
        vectors_.push_back({Get("layer_scalar", 1, 1), 0, 1, nullptr, &weights_.layers[i].scalar});
      }
    }
    if (problems_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("cannot load ", checkpoint_.path(), ": ", absl::StrJoin(problems_, "; ")));
  }

  const std::vector<MatrixJob>& matrices() const { return matrices_; }
  const std::vector<VectorJob>& vectors() const { return vectors_; }

 private:
  void Attention(LayerWeights& layer, const LayerShard& shard) {
    const int64_t m = spec_.hidden, d = layer.spec.head_dim;
    Norm("input_layernorm.weight", m, &layer.input_norm);
    MatrixJob qkv{{.name = prefix_ + "qkv"}, &layer.qkv};
    const int64_t q_rows = layer.spec.q_heads * d, kv_rows = layer.spec.kv_heads * d;
    Part(qkv.source, "self_attn.q_proj.weight", q_rows, m, Times(shard.q_heads, d), {0, m});
    if (spec_.qk_norm) Norm("self_attn.q_norm.weight", d, &layer.q_norm);
    if (layer.owns_kv()) {
      Part(qkv.source, "self_attn.k_proj.weight", kv_rows, m, Times(shard.kv_heads, d), {0, m});
      if (!layer.spec.k_eq_v) {
        Part(qkv.source, "self_attn.v_proj.weight", kv_rows, m, Times(shard.kv_heads, d), {0, m});
      }
      if (spec_.qk_norm) Norm("self_attn.k_norm.weight", d, &layer.k_norm);
    }
    matrices_.push_back(std::move(qkv));
    Matrix("self_attn.o_proj.weight", m, q_rows, {0, m}, Times(shard.q_heads, d), &layer.output);
    Norm("post_attention_layernorm.weight", m, &layer.post_attention_norm);
  }

  void Mlp(LayerWeights& layer, const LayerShard& shard) {
    const int64_t m = spec_.hidden, width = layer.spec.mlp_width;
    Norm("pre_feedforward_layernorm.weight", m, &layer.pre_mlp_norm);
    if (shard.mlp.size() > 0) {
      MatrixJob gate_up{{.name = prefix_ + "gate_up", .gated = true}, &layer.gate_up};
      Part(gate_up.source, "mlp.gate_proj.weight", width, m, shard.mlp, {0, m});
      Part(gate_up.source, "mlp.up_proj.weight", width, m, shard.mlp, {0, m});
      matrices_.push_back(std::move(gate_up));
      Matrix("mlp.down_proj.weight", m, width, {0, m}, shard.mlp, &layer.down);
    }
    Norm("post_feedforward_layernorm.weight", m, &layer.post_mlp_norm);
  }

  void Experts(MoeWeights& moe) {
    const int64_t m = spec_.hidden, count = spec_.moe.experts, width = spec_.moe.expert_width;
    Norm("post_feedforward_layernorm_1.weight", m, &moe.dense_post_norm);
    Norm("pre_feedforward_layernorm_2.weight", m, &moe.expert_pre_norm);
    Norm("post_feedforward_layernorm_2.weight", m, &moe.expert_post_norm);
    vectors_.push_back({Get("router.scale", m, 1), 0,
                        static_cast<float>(1.0 / std::sqrt(static_cast<double>(m))),
                        &moe.router_scale, nullptr});
    vectors_.push_back(
        {Get("router.per_expert_scale", count, 1), 0, 1, &moe.per_expert_scale, nullptr});
    MatrixJob router{{.name = prefix_ + "router", .keep_fp32 = true}, &moe.router};
    Part(router.source, "router.proj.weight", count, m, {0, count}, {0, m});
    matrices_.push_back(std::move(router));

    // One fused tensor [E, 2 I, M] (gate rows first), or gate and up apart.
    const bool fused = checkpoint_.Find(prefix_ + "experts.gate_up_proj") != nullptr ||
                       checkpoint_.Find(prefix_ + "experts.gate_proj") == nullptr;
    for (int64_t e = moe.experts.begin; e < moe.experts.end; ++e) {
      const int64_t local = e - moe.experts.begin;
      const MatrixStack stack{.index = local, .count = moe.experts.size()};
      MatrixJob gate_up{
          {.name = absl::StrCat(prefix_, "expert ", e), .gated = true, .stack = stack},
          &moe.gate_up[local]};
      if (fused) {
        Part(gate_up.source, "experts.gate_up_proj", count * 2 * width, m,
             Shifted({0, 2 * width}, e * 2 * width), {0, m});
      } else {
        const Range rows = Shifted({0, width}, e * width);
        Part(gate_up.source, "experts.gate_proj", count * width, m, rows, {0, m});
        Part(gate_up.source, "experts.up_proj", count * width, m, rows, {0, m});
      }
      matrices_.push_back(std::move(gate_up));
      MatrixJob down{{.name = absl::StrCat(prefix_, "expert ", e, " down"), .stack = stack},
                     &moe.down[local]};
      Part(down.source, "experts.down_proj", count * m, width, Shifted({0, m}, e * m), {0, width});
      matrices_.push_back(std::move(down));
    }
  }

  void Ple(LayerWeights& layer) {
    const int64_t m = spec_.hidden, p = spec_.ple_dim;
    Matrix("per_layer_input_gate.weight", p, m, {0, p}, {0, m}, &layer.ple_gate, true);
    Matrix("per_layer_projection.weight", m, p, {0, m}, {0, p}, &layer.ple_projection, true);
    Norm("post_per_layer_input_norm.weight", m, &layer.ple_post_norm);
  }

  // The tensor with prefix_, `rows` x `columns` when flattened. A vector may be [n] or [1, n].
  const StoredTensor* Get(const std::string& name, int64_t rows, int64_t columns) {
    const bool of_layer = checkpoint_.Find(prefix_ + name) != nullptr;
    const StoredTensor* tensor = of_layer ? checkpoint_.Find(prefix_ + name) : nullptr;
    if (tensor == nullptr) {
      problems_.push_back(absl::StrCat(prefix_, name, " is missing"));
      return nullptr;
    }
    const bool fits = columns == 1 ? tensor->rows() * tensor->inner() == rows
                                   : tensor->rows() == rows && tensor->inner() == columns;
    if (!fits) {
      problems_.push_back(absl::StrFormat("%s%s has %d x %d values where %d x %d are expected",
                                          prefix_, name, tensor->rows(), tensor->inner(), rows,
                                          columns));
      return nullptr;
    }
    return tensor;
  }
  void Part(MatrixSource& source, const std::string& name, int64_t total_rows,
            int64_t total_columns, Range rows, Range columns) {
    source.parts.push_back({Get(name, total_rows, total_columns), rows, columns});
  }
  void Matrix(const std::string& name, int64_t total_rows, int64_t total_columns, Range rows,
              Range columns, MatrixHandle* target, bool at_least_bf16 = false) {
    if (rows.size() == 0 || columns.size() == 0) return;
    MatrixJob job{{.name = prefix_ + name, .at_least_bf16 = at_least_bf16}, target};
    Part(job.source, name, total_rows, total_columns, rows, columns);
    matrices_.push_back(std::move(job));
  }
  void Norm(const std::string& name, int64_t dim, VectorHandle* target) {
    vectors_.push_back(
        {Get(name, dim, 1), spec_.norm_weight_plus_one ? 1.0f : 0.0f, 1.0f, target, nullptr});
  }

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  const RankShard& shard_;
  ModelWeights& weights_;
  std::string prefix_;
  std::vector<MatrixJob> matrices_;
  std::vector<VectorJob> vectors_;
  std::vector<std::string> problems_;
};

// group_begin and the rest of a rank's heads.
void DescribeHeads(const ModelSpec& spec, const RankShard& shard, LayerWeights& layer) {
  const LayerShard& own = shard.layers[layer.index];
  const LayerShard& owner = shard.layers[layer.spec.kv_owner];
  layer.q_heads = static_cast<int>(own.q_heads.size());
  layer.kv_heads = layer.owns_kv() ? static_cast<int>(own.kv_heads.size()) : 0;
  layer.first_kv_head = static_cast<int>(own.kv_heads.begin - owner.kv_heads.begin);
  const int64_t group = layer.spec.q_heads / std::max(1, spec.layers[layer.spec.kv_owner].kv_heads);
  layer.group_begin = {0};
  for (int64_t h = own.kv_heads.begin; h < own.kv_heads.end; ++h) {
    const int64_t end = std::clamp((h + 1) * group, own.q_heads.begin, own.q_heads.end);
    layer.group_begin.push_back(static_cast<int>(end - own.q_heads.begin));
  }
}

absl::Status CheckGeometry(const ModelSpec& spec, const RankShard& shard,
                           const ModelWeights& weights) {
  if (shard.layers.size() != spec.layers.size()) {
    return absl::InternalError(absl::StrFormat("the shard has %d layers, the model %d",
                                               shard.layers.size(), spec.layers.size()));
  }
  if (spec.moe.experts > 0 && (spec.moe.top_k < 1 || spec.moe.top_k > spec.moe.experts)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d of %d experts per token", spec.moe.top_k, spec.moe.experts));
  }
  for (const LayerWeights& layer : weights.layers) {
    const int d = layer.spec.head_dim, pairs = layer.spec.rope.rotated_pairs;
    if (d < 2 || d > kMaxHeadDim || d % 2 != 0 || pairs < 0 || pairs > d / 2) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "layer %d: a head of %d columns with %d rotated pairs; even sizes up to %d can be "
          "computed",
          layer.index, d, pairs, kMaxHeadDim));
    }
    const Range own = shard.layers[layer.index].kv_heads;
    const Range owner = shard.layers[layer.spec.kv_owner].kv_heads;
    const int owner_heads = spec.layers[layer.spec.kv_owner].kv_heads;
    if (owner_heads <= 0 || layer.spec.q_heads % owner_heads != 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("layer %d: %d query heads do not divide among %d key heads", layer.index,
                          layer.spec.q_heads, owner_heads));
    }
    if (layer.q_heads == 0 || layer.group_begin.back() != layer.q_heads ||
        own.begin < owner.begin || own.end > owner.end ||
        layer.spec.head_dim != spec.layers[layer.spec.kv_owner].head_dim) {
      return absl::InternalError(
          absl::StrFormat("layer %d: the shard's key heads [%d, %d) do not serve its query heads",
                          layer.index, own.begin, own.end));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> ReadVector(const VectorJob& job) {
  const StoredTensor& tensor = *job.tensor;
  const int64_t count = tensor.rows() * tensor.inner();
  std::vector<float> values(count);
  const int64_t inner = tensor.inner();
  const int64_t row_bytes = tensor.rows() > 0 ? tensor.bytes / tensor.rows() : 0;
  for (int64_t r = 0; r < tensor.rows(); ++r) {
    Dequantize(tensor.dtype, tensor.data + r * row_bytes, 0, inner, values.data() + r * inner);
  }
  for (float& v : values) v = (v + job.plus) * job.times;
  return values;
}

}  // namespace

ModelWeights DescribeWeights(const ModelSpec& spec, const RankShard& shard) {
  ModelWeights weights;
  weights.hidden = spec.hidden;
  weights.norm_eps = static_cast<float>(spec.norm_eps);
  weights.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(spec.hidden)));
  weights.softcap = static_cast<float>(spec.final_softcap);
  weights.vocab = shard.vocab;
  weights.moe = spec.moe;
  if (spec.ple_dim > 0) {
    weights.ple.dim = spec.ple_dim;
    weights.ple.layers = static_cast<int64_t>(spec.layers.size());
    weights.ple.projection_scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.hidden)));
    weights.ple.table_scale = static_cast<float>(std::sqrt(static_cast<double>(spec.ple_dim)));
  }
  for (size_t i = 0; i < spec.layers.size() && i < shard.layers.size(); ++i) {
    LayerWeights layer;
    layer.index = static_cast<int>(i);
    layer.spec = spec.layers[i];
    layer.attention_scale = spec.attention_scale;
    layer.v_norm = spec.v_norm;
    layer.norm_eps = weights.norm_eps;
    DescribeHeads(spec, shard, layer);
    layer.mlp_width = shard.layers[i].mlp.size();
    if (spec.moe.experts > 0) {
      layer.moe.experts = shard.layers[i].experts;
      layer.moe.gate_up.resize(layer.moe.experts.size());
      layer.moe.down.resize(layer.moe.experts.size());
    }
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const RankShard& shard,
                                         Backend& backend,
                                         const std::function<void(int64_t, int64_t)>& progress) {
  ModelWeights weights = DescribeWeights(checkpoint.spec(), shard);
  RETURN_IF_ERROR(CheckGeometry(checkpoint.spec(), shard, weights));
  WeightPlan plan(checkpoint, shard, weights);
  RETURN_IF_ERROR(plan.Build());

  int64_t total = 0, done = 0;
  for (const MatrixJob& job : plan.matrices()) {
    ASSIGN_OR_RETURN(const int64_t bytes, backend.MatrixBytes(job.source));
    total += bytes;
  }
  if (weights.ple.table != nullptr) RETURN_IF_ERROR(backend.AddPleTable(*weights.ple.table));
  for (const VectorJob& job : plan.vectors()) {
    ASSIGN_OR_RETURN(std::vector<float> values, ReadVector(job));
    if (job.number != nullptr) {
      *job.number = values[0];
    } else {
      ASSIGN_OR_RETURN(*job.target, backend.AddVector(values));
    }
  }
  for (const MatrixJob& job : plan.matrices()) {
    ASSIGN_OR_RETURN(*job.target, backend.AddMatrix(job.source));
    ASSIGN_OR_RETURN(const int64_t bytes, backend.MatrixBytes(job.source));
    done += bytes;
    if (progress) progress(done, total);
  }
  return weights;
}

absl::StatusOr<int64_t> WeightsBytes(
    const Checkpoint& checkpoint, const RankShard& shard,
    const std::function<int64_t(const MatrixSource&)>& matrix_bytes) {
  ModelWeights weights = DescribeWeights(checkpoint.spec(), shard);
  RETURN_IF_ERROR(CheckGeometry(checkpoint.spec(), shard, weights));
  WeightPlan plan(checkpoint, shard, weights);
  RETURN_IF_ERROR(plan.Build());
  int64_t total = 0;
  for (const MatrixJob& job : plan.matrices()) total += matrix_bytes(job.source);
  for (const VectorJob& job : plan.vectors()) {
    if (job.target == nullptr) continue;
    total += job.tensor->rows() * job.tensor->inner() * static_cast<int64_t>(sizeof(float));
  }
  return total;
}

}  // namespace lapidary
