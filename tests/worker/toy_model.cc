#include "tests/worker/toy_model.h"

#include <cmath>
#include <cstring>

namespace lapidary {
namespace {

double U(uint32_t tensor, uint32_t element) {
  uint32_t x = 1664525u * (tensor * 65537u + element + 1u) + 1013904223u;
  x ^= x >> 16;
  x *= 2246822519u;
  x ^= x >> 13;
  return x / 4294967296.0 * 2.0 - 1.0;
}

enum class Kind { kLinear, kEmbedding, kNorm, kScalar };

class Filler {
 public:
  Filler(const ModelSpec& spec, MemoryCheckpoint& out) : spec_(spec), out_(out) {}

  void Add(const std::string& name, std::vector<int64_t> shape, Kind kind) {
    int64_t count = 1;
    for (const int64_t n : shape) count *= n;
    std::vector<float> values(count);
    const double root = std::sqrt(static_cast<double>(shape.back()));
    for (int64_t j = 0; j < count; ++j) {
      const double u = U(tensor_, static_cast<uint32_t>(j));
      double v = u;
      if (kind == Kind::kLinear) v = u / root;
      if (kind == Kind::kNorm) v = (spec_.norm_weight_plus_one ? 0.0 : 1.0) + 0.3 * u;
      if (kind == Kind::kScalar) v = 0.9 + 0.1 * u;
      values[j] = static_cast<float>(v);
    }
    ++tensor_;
    out_.Add(prefix_ + name, std::move(shape), std::move(values));
  }

  void All() {
    const int64_t m = spec_.hidden, p = spec_.ple_dim;
    const auto layers = static_cast<int64_t>(spec_.layers.size());
    Add("embed_tokens.weight", {spec_.vocab, m}, Kind::kEmbedding);
    if (p > 0) {
      Add("embed_tokens_per_layer.weight", {spec_.ple_vocab, layers * p}, Kind::kEmbedding);
      Add("per_layer_model_projection.weight", {layers * p, m}, Kind::kLinear);
      Add("per_layer_projection_norm.weight", {p}, Kind::kNorm);
    }
    for (int64_t i = 0; i < layers; ++i) {
      prefix_ = "layers." + std::to_string(i) + ".";
      Layer(spec_.layers[i], !spec_.shares_kv(static_cast<int>(i)));
    }
    prefix_.clear();
    Add("norm.weight", {m}, Kind::kNorm);
  }

 private:
  void Layer(const LayerSpec& layer, bool owns) {
    const int64_t m = spec_.hidden, d = layer.head_dim, p = spec_.ple_dim;
    Add("input_layernorm.weight", {m}, Kind::kNorm);
    Add("self_attn.q_proj.weight", {layer.q_heads * d, m}, Kind::kLinear);
    Add("self_attn.q_norm.weight", {d}, Kind::kNorm);
    if (owns) {
      Add("self_attn.k_proj.weight", {layer.kv_heads * d, m}, Kind::kLinear);
      Add("self_attn.k_norm.weight", {d}, Kind::kNorm);
      if (!layer.k_eq_v) Add("self_attn.v_proj.weight", {layer.kv_heads * d, m}, Kind::kLinear);
    }
    Add("self_attn.o_proj.weight", {m, layer.q_heads * d}, Kind::kLinear);
    Add("post_attention_layernorm.weight", {m}, Kind::kNorm);
    Add("pre_feedforward_layernorm.weight", {m}, Kind::kNorm);
    Add("mlp.gate_proj.weight", {layer.mlp_width, m}, Kind::kLinear);
    Add("mlp.up_proj.weight", {layer.mlp_width, m}, Kind::kLinear);
    Add("mlp.down_proj.weight", {m, layer.mlp_width}, Kind::kLinear);
    if (spec_.moe.experts > 0) {
      const int64_t e = spec_.moe.experts, width = spec_.moe.expert_width;
      Add("post_feedforward_layernorm_1.weight", {m}, Kind::kNorm);
      Add("router.scale", {m}, Kind::kNorm);
      Add("router.proj.weight", {e, m}, Kind::kEmbedding);
      Add("router.per_expert_scale", {e}, Kind::kNorm);
      Add("pre_feedforward_layernorm_2.weight", {m}, Kind::kNorm);
      Add("experts.gate_up_proj", {e, 2 * width, m}, Kind::kLinear);
      Add("experts.down_proj", {e, m, width}, Kind::kLinear);
      Add("post_feedforward_layernorm_2.weight", {m}, Kind::kNorm);
    }
    Add("post_feedforward_layernorm.weight", {m}, Kind::kNorm);
    if (p > 0) {
      Add("per_layer_input_gate.weight", {p, m}, Kind::kLinear);
      Add("per_layer_projection.weight", {m, p}, Kind::kLinear);
      Add("post_per_layer_input_norm.weight", {m}, Kind::kNorm);
    }
    if (spec_.layer_scalar) Add("layer_scalar", {1}, Kind::kScalar);
  }

  const ModelSpec& spec_;
  MemoryCheckpoint& out_;
  std::string prefix_;
  uint32_t tensor_ = 0;
};

// Layers from a string of S and F; heads 4, window 4.
ModelSpec Base(const std::string& kinds, int mlp_width) {
  ModelSpec spec;
  spec.hidden = 16;
  spec.vocab = 32;
  spec.max_context = 4096;
  spec.final_softcap = 30;
  for (size_t i = 0; i < kinds.size(); ++i) {
    const bool full = kinds[i] == 'F';
    LayerSpec layer;
    layer.kind = full ? KvFamily::kGlobal : KvFamily::kSliding;
    layer.q_heads = 4;
    layer.kv_heads = 1;
    layer.head_dim = full ? 16 : 8;
    layer.window = full ? 0 : 4;
    layer.rope = full ? RopeSpec{1e6, 2, 1.0} : RopeSpec{1e4, 4, 1.0};
    layer.kv_owner = static_cast<int>(i);
    layer.mlp_width = mlp_width;
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace

void MemoryCheckpoint::Add(const std::string& name, std::vector<int64_t> shape,
                           std::vector<float> values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  AddBlocks(name, DType::kF32, std::move(shape), std::move(bytes));
}

void MemoryCheckpoint::AddBlocks(const std::string& name, DType dtype, std::vector<int64_t> shape,
                                 std::vector<uint8_t> blocks) {
  storage_[name] = std::move(blocks);
  StoredTensor tensor;
  tensor.name = name;
  tensor.file = "memory";
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.data = storage_[name].data();
  tensor.bytes = static_cast<int64_t>(storage_[name].size());
  if (const auto found = index_.find(name); found != index_.end()) {
    tensors_[found->second] = tensor;
  } else {
    index_[name] = tensors_.size();
    tensors_.push_back(tensor);
  }
  quantized_ = quantized_ || IsQuantized(dtype);
}

const StoredTensor* MemoryCheckpoint::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

ModelSpec ToyA() {
  ModelSpec spec = Base("SSFSSF", 24);
  spec.ple_dim = 4;
  spec.ple_vocab = 32;
  for (const int i : {3, 4, 5}) {
    spec.layers[i].kv_owner = i == 5 ? 2 : 1;
    spec.layers[i].mlp_width = 48;
  }
  return spec;
}

ModelSpec ToyB() {
  ModelSpec spec = Base("SSF", 12);
  spec.layers[0].kv_heads = spec.layers[1].kv_heads = 2;
  spec.layers[2].k_eq_v = true;
  spec.moe = {6, 2, 6};
  return spec;
}

ModelSpec ToyG3() {
  ModelSpec spec = Base("SSSSSFSS", 24);
  spec.family = ModelFamily::kGemma3;
  spec.attention_scale = 1 / std::sqrt(8.0);
  spec.final_softcap = 0;
  spec.norm_weight_plus_one = true;
  spec.v_norm = false;
  spec.layer_scalar = false;
  spec.layers[5].head_dim = 8;
  spec.layers[5].rope = {1e6, 4, 1.0};
  return spec;
}

std::unique_ptr<MemoryCheckpoint> FillToy(const ModelSpec& spec) {
  auto checkpoint = std::make_unique<MemoryCheckpoint>(spec);
  Filler(spec, *checkpoint).All();
  return checkpoint;
}

}  // namespace lapidary
