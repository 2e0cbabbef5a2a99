#include "model/tensor_table.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace lapidary {
namespace {

class TableBuilder {
 public:
  explicit TableBuilder(const ModelSpec& spec) : spec_(spec) {}

  std::vector<ExpectedTensor> Build() && {
    const int64_t m = spec_.hidden, layers = static_cast<int64_t>(spec_.layers.size());
    Add("embed_tokens.weight", {spec_.vocab, m}, TensorPart::kEmbedding);
    if (spec_.ple_dim > 0) {
      const int64_t width = layers * spec_.ple_dim;
      Add("embed_tokens_per_layer.weight", {spec_.ple_vocab, width}, TensorPart::kPleTable);
      Add("per_layer_model_projection.weight", {width, m}, TensorPart::kPleModelProjection);
      Add("per_layer_projection_norm.weight", {spec_.ple_dim}, TensorPart::kNorm);
    }
    for (int i = 0; i < layers; ++i) AddLayer(i);
    prefix_.clear();
    Add("norm.weight", {m}, TensorPart::kNorm);
    return std::move(tensors_);
  }

 private:
  void Add(std::string_view name, std::vector<int64_t> shape, TensorPart part) {
    std::string full = prefix_;
    full += name;
    tensors_.push_back({std::move(full), std::move(shape), part});
  }

  void AddLayer(int index) {
    const LayerSpec& layer = spec_.layers[index];
    const int64_t m = spec_.hidden, d = layer.head_dim;
    prefix_ = absl::StrCat("layers.", index, ".");
    Add("input_layernorm.weight", {m}, TensorPart::kNorm);
    Add("self_attn.q_proj.weight", {layer.q_heads * d, m}, TensorPart::kAttention);
    Add("self_attn.q_norm.weight", {d}, TensorPart::kNorm);
    if (!spec_.shares_kv(index)) {
      Add("self_attn.k_proj.weight", {layer.kv_heads * d, m}, TensorPart::kAttention);
      Add("self_attn.k_norm.weight", {d}, TensorPart::kNorm);
      if (!layer.k_eq_v) {
        Add("self_attn.v_proj.weight", {layer.kv_heads * d, m}, TensorPart::kAttention);
      }
    }
    Add("self_attn.o_proj.weight", {m, layer.q_heads * d}, TensorPart::kAttention);
    Add("post_attention_layernorm.weight", {m}, TensorPart::kNorm);
    Add("pre_feedforward_layernorm.weight", {m}, TensorPart::kNorm);
    Add("mlp.gate_proj.weight", {layer.mlp_width, m}, TensorPart::kMlp);
    Add("mlp.up_proj.weight", {layer.mlp_width, m}, TensorPart::kMlp);
    Add("mlp.down_proj.weight", {m, layer.mlp_width}, TensorPart::kMlp);
    Add("post_feedforward_layernorm.weight", {m}, TensorPart::kNorm);
    if (spec_.moe.experts > 0) {
      const int64_t e = spec_.moe.experts, width = spec_.moe.expert_width;
      Add("post_feedforward_layernorm_1.weight", {m}, TensorPart::kNorm);
      Add("router.scale", {m}, TensorPart::kRouter);
      Add("router.proj.weight", {e, m}, TensorPart::kRouter);
      Add("router.per_expert_scale", {e}, TensorPart::kRouter);
      Add("pre_feedforward_layernorm_2.weight", {m}, TensorPart::kNorm);
      Add("experts.gate_up_proj", {e, 2 * width, m}, TensorPart::kExperts);
      Add("experts.down_proj", {e, m, width}, TensorPart::kExperts);
      Add("post_feedforward_layernorm_2.weight", {m}, TensorPart::kNorm);
    }
    if (spec_.ple_dim > 0) {
      Add("per_layer_input_gate.weight", {spec_.ple_dim, m}, TensorPart::kPleLayer);
      Add("per_layer_projection.weight", {m, spec_.ple_dim}, TensorPart::kPleLayer);
      Add("post_per_layer_input_norm.weight", {m}, TensorPart::kNorm);
    }
    if (spec_.layer_scalar) Add("layer_scalar", {1}, TensorPart::kLayerScalar);
  }

  const ModelSpec& spec_;
  std::string prefix_;
  std::vector<ExpectedTensor> tensors_;
};

}  // namespace

const char* Name(TensorPart part) {
  switch (part) {
    case TensorPart::kEmbedding:
      return "token embedding (= head)";
    case TensorPart::kAttention:
      return "attention";
    case TensorPart::kMlp:
      return "dense MLP";
    case TensorPart::kExperts:
      return "experts";
    case TensorPart::kRouter:
      return "router";
    case TensorPart::kPleTable:
      return "PLE table";
    case TensorPart::kPleModelProjection:
      return "PLE model projection";
    case TensorPart::kPleLayer:
      return "PLE gates and projections";
    case TensorPart::kNorm:
      return "norms";
    case TensorPart::kLayerScalar:
      return "layer scalars";
  }
  return "";
}

int64_t ExpectedTensor::elements() const {
  int64_t n = 1;
  for (const int64_t dim : shape) n *= dim;
  return n;
}

std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec) {
  return TableBuilder(spec).Build();
}

bool IsDeadTensor(const ModelSpec& spec, std::string_view canonical_name) {
  constexpr std::string_view kPrefix = "layers.";
  if (canonical_name.substr(0, kPrefix.size()) != kPrefix) return false;
  const std::string_view rest = canonical_name.substr(kPrefix.size());
  const size_t dot = rest.find('.');
  int layer = -1;
  if (dot == std::string_view::npos ||
      !absl::SimpleAtoi(absl::string_view(rest.data(), dot), &layer) || layer < 0 ||
      layer >= static_cast<int>(spec.layers.size()) || !spec.shares_kv(layer)) {
    return false;
  }
  const std::string_view name = rest.substr(dot + 1);
  return name == "self_attn.k_proj.weight" || name == "self_attn.v_proj.weight" ||
         name == "self_attn.k_norm.weight";
}

int64_t LiveParameters(const ModelSpec& spec) {
  int64_t total = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(spec)) total += tensor.elements();
  return total;
}

int64_t DeadParameters(const ModelSpec& spec) {
  int64_t total = 0;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    if (!spec.shares_kv(static_cast<int>(i))) continue;
    const LayerSpec& layer = spec.layers[i];
    const int64_t matrices = layer.k_eq_v ? 1 : 2;
    total += (matrices * layer.kv_heads * spec.hidden + 1) * layer.head_dim;
  }
  return total;
}

int64_t ActiveParameters(const ModelSpec& spec) {
  int64_t total = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(spec)) {
    if (tensor.part == TensorPart::kPleTable) continue;
    const int64_t elements = tensor.elements();
    total += tensor.part == TensorPart::kExperts ? elements / spec.moe.experts * spec.moe.top_k
                                                 : elements;
  }
  return total;
}

}  // namespace lapidary
