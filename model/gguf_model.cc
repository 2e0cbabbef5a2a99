#include "model/gguf_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/spec_rules.h"

namespace lapidary {
namespace {

struct NamePair {
  std::string_view gguf, canonical;
};
constexpr NamePair kModelNames[] = {
    {"token_embd.weight", "embed_tokens.weight"},
    {"output_norm.weight", "norm.weight"},
    {"output.weight", "lm_head.weight"},
    {"rope_freqs.weight", "rope_freqs.weight"},
    {"per_layer_token_embd.weight", "embed_tokens_per_layer.weight"},
    {"per_layer_model_proj.weight", "per_layer_model_projection.weight"},
    {"per_layer_proj_norm.weight", "per_layer_projection_norm.weight"},
};
constexpr NamePair kLayerNames[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"attn_q_norm.weight", "self_attn.q_norm.weight"},
    {"attn_k_norm.weight", "self_attn.k_norm.weight"},
    {"post_attention_norm.weight", "post_attention_layernorm.weight"},
    {"ffn_norm.weight", "pre_feedforward_layernorm.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
    {"post_ffw_norm.weight", "post_feedforward_layernorm.weight"},
    {"layer_output_scale.weight", "layer_scalar"},
    {"inp_gate.weight", "per_layer_input_gate.weight"},
    {"proj.weight", "per_layer_projection.weight"},
    {"post_norm.weight", "post_per_layer_input_norm.weight"},
    {"ffn_gate_inp.weight", "router.proj.weight"},
    {"ffn_gate_inp.scale", "router.scale"},
    {"ffn_down_exps.scale", "router.per_expert_scale"},
    {"ffn_gate_up_exps.weight", "experts.gate_up_proj"},
    {"ffn_gate_exps.weight", "experts.gate_proj"},
    {"ffn_up_exps.weight", "experts.up_proj"},
    {"ffn_down_exps.weight", "experts.down_proj"},
    {"pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight"},
    {"post_ffw_norm_1.weight", "post_feedforward_layernorm_1.weight"},
    {"post_ffw_norm_2.weight", "post_feedforward_layernorm_2.weight"},
};

// The keys of one architecture, "gemma4.attention.head_count" and so on.
class Keys {
 public:
  Keys(const GgufFile& gguf, std::string_view architecture)
      : gguf_(gguf), prefix_(std::string(architecture) + ".") {}

  std::string Full(std::string_view key) const {
    std::string full = prefix_;
    full += key;
    return full;
  }
  bool Has(std::string_view key) const { return gguf_.Has(Full(key)); }
  absl::StatusOr<int64_t> Int(std::string_view key, int64_t low, int64_t high) const {
    ASSIGN_OR_RETURN(const int64_t value, gguf_.Int(Full(key)));
    RETURN_IF_ERROR(CheckRange(key, value, low, high));
    return value;
  }
  absl::StatusOr<int64_t> IntOr(std::string_view key, int64_t absent, int64_t low,
                                int64_t high) const {
    return Has(key) ? Int(key, low, high) : absent;
  }
  absl::StatusOr<double> FloatOr(std::string_view key, double absent) const {
    return gguf_.FloatOr(Full(key), absent);
  }
  // One number for all layers, or one for each.
  absl::StatusOr<std::vector<int64_t>> PerLayer(std::string_view key, int64_t layers, int64_t low,
                                                int64_t high) const {
    ASSIGN_OR_RETURN(std::vector<int64_t> values, gguf_.Ints(Full(key)));
    if (!gguf_.IsArray(Full(key))) values.resize(static_cast<size_t>(layers), values[0]);
    if (static_cast<int64_t>(values.size()) != layers) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: %s has %d entries for %d layers",
                                                        gguf_.file().name(), Full(key),
                                                        values.size(), layers));
    }
    for (const int64_t value : values) RETURN_IF_ERROR(CheckRange(key, value, low, high));
    return values;
  }

 private:
  absl::Status CheckRange(std::string_view key, int64_t value, int64_t low, int64_t high) const {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %s is %d, expected %d to %d", gguf_.file().name(), Full(key), value, low, high));
  }

  const GgufFile& gguf_;
  const std::string prefix_;
};

absl::StatusOr<std::vector<KvFamily>> ReadKinds(const GgufFile& gguf, const Keys& keys,
                                                ModelFamily family, int64_t layers) {
  const std::string key = keys.Full("attention.sliding_window_pattern");
  std::vector<KvFamily> kinds(static_cast<size_t>(layers));
  if (gguf.IsArray(key)) {  // true: sliding
    ASSIGN_OR_RETURN(const std::vector<int64_t> sliding,
                     keys.PerLayer("attention.sliding_window_pattern", layers, 0, 1));
    for (int64_t i = 0; i < layers; ++i) {
      kinds[i] = sliding[i] != 0 ? KvFamily::kSliding : KvFamily::kGlobal;
    }
    return kinds;
  }
  if (family == ModelFamily::kGemma4 && !gguf.Has(key)) return gguf.Int(key).status();
  // Gemma 3 files leave the period out: it is always 6.
  ASSIGN_OR_RETURN(const int64_t period,
                   keys.IntOr("attention.sliding_window_pattern", 6, 1, kMaxLayers));
  for (int64_t i = 0; i < layers; ++i) {
    kinds[i] = (i + 1) % period == 0 ? KvFamily::kGlobal : KvFamily::kSliding;
  }
  return kinds;
}

// rope_freqs holds divisors of the frequencies: some factor where the head rotates, and 1e30 where
// it does not.
absl::StatusOr<RopeSpec> ReadRopeDivisors(const GgufFile& gguf, double theta, int head_dim) {
  const GgufTensor* const tensor = gguf.FindTensor("rope_freqs.weight");
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tensor 'rope_freqs.weight' %s", gguf.file().name(), what));
  };
  if (tensor == nullptr) return bad("is missing; Gemma 4 needs it for its full layers");
  if (tensor->dtype != DType::kF32 || tensor->shape != std::vector<int64_t>{head_dim / 2}) {
    return bad(absl::StrFormat("is not F32 [%d]", head_dim / 2));
  }
  std::vector<float> divisors(static_cast<size_t>(head_dim / 2));
  std::memcpy(divisors.data(), tensor->data, divisors.size() * sizeof(float));
  RopeSpec rope{.theta = theta, .rotated_pairs = 0, .factor = divisors[0]};
  while (rope.rotated_pairs < head_dim / 2 && divisors[rope.rotated_pairs] == divisors[0]) {
    ++rope.rotated_pairs;
  }
  if (divisors[0] >= 1e29f) {
    rope.rotated_pairs = 0;
    rope.factor = 1.0;
  }
  for (int i = rope.rotated_pairs; i < head_dim / 2; ++i) {
    if (!(divisors[i] >= 1e29f)) {
      return bad(absl::StrFormat("has divisor %g at %d: neither the common %g nor 'off'",
                                 divisors[i], i, divisors[0]));
    }
  }
  return rope;
}

// True when the full layers take V from K: then none of those that own KV has an attn_v.
bool GlobalLayersLackV(const GgufFile& gguf, const ModelSpec& spec) {
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    if (spec.layers[i].kind == KvFamily::kGlobal && !spec.shares_kv(static_cast<int>(i)) &&
        gguf.FindTensor(absl::StrFormat("blk.%d.attn_v.weight", i)) != nullptr) {
      return false;
    }
  }
  return true;
}

absl::Status ReadGemma3Layers(const Keys& keys, ModelSpec& spec) {
  ASSIGN_OR_RETURN(const int64_t head_dim, keys.IntOr("attention.key_length", 256, 2, kMaxHeadDim));
  const int64_t layers = static_cast<int64_t>(spec.layers.size());
  // The linear scaling of the larger models concerns full layers alone.
  ASSIGN_OR_RETURN(const double theta, keys.FloatOr("rope.freq_base", 1e6));
  ASSIGN_OR_RETURN(const double theta_swa, keys.FloatOr("rope.freq_base_swa", 1e4));
  ASSIGN_OR_RETURN(const double factor, keys.FloatOr("rope.scaling.factor", 1.0));
  for (LayerSpec& layer : spec.layers) {
    const bool sliding = layer.kind == KvFamily::kSliding;
    layer.head_dim = static_cast<int>(head_dim);
    layer.rope = {.theta = sliding ? theta_swa : theta,
                  .rotated_pairs = layer.head_dim / 2,
                  .factor = sliding ? 1.0 : factor};
  }
  // Only the 27B (62 layers) scales by its mean head size, not by the head size.
  const double scalar =
      layers == 62 ? double(spec.hidden) / spec.layers[0].q_heads : double(head_dim);
  spec.attention_scale = 1.0 / std::sqrt(scalar);
  spec.norm_weight_plus_one = false;  // the file stores 1 + w
  spec.v_norm = false;
  spec.layer_scalar = false;
  return AssignKvOwners(spec, 0, "");
}

absl::Status ReadGemma4Layers(const GgufFile& gguf, const Keys& keys, ModelSpec& spec) {
  ASSIGN_OR_RETURN(const int64_t head_dim, keys.Int("attention.key_length", 2, kMaxHeadDim));
  ASSIGN_OR_RETURN(const int64_t head_dim_swa,
                   keys.IntOr("attention.key_length_swa", head_dim, 2, kMaxHeadDim));
  ASSIGN_OR_RETURN(const double theta, keys.FloatOr("rope.freq_base", 1e6));
  ASSIGN_OR_RETURN(const double theta_swa, keys.FloatOr("rope.freq_base_swa", 1e4));
  ASSIGN_OR_RETURN(const RopeSpec global_rope,
                   ReadRopeDivisors(gguf, theta, static_cast<int>(head_dim)));
  for (LayerSpec& layer : spec.layers) {
    if (layer.kind == KvFamily::kSliding) {
      layer.head_dim = static_cast<int>(head_dim_swa);
      layer.rope = {.theta = theta_swa, .rotated_pairs = layer.head_dim / 2};
    } else {
      layer.head_dim = static_cast<int>(head_dim);
      layer.rope = global_rope;
    }
  }
  ASSIGN_OR_RETURN(const int64_t shared,
                   keys.IntOr("attention.shared_kv_layers", 0, 0, kMaxLayers));
  RETURN_IF_ERROR(AssignKvOwners(spec, shared, gguf.file().name() + ": shared_kv_layers: "));
  const bool k_eq_v = GlobalLayersLackV(gguf, spec);
  for (LayerSpec& layer : spec.layers) layer.k_eq_v = k_eq_v && layer.kind == KvFamily::kGlobal;

  ASSIGN_OR_RETURN(spec.ple_dim, keys.IntOr("embedding_length_per_layer_input", 0, 0, kMaxPleDim));
  if (spec.ple_dim > 0) {
    const GgufTensor* const table = gguf.FindTensor("per_layer_token_embd.weight");
    spec.ple_vocab = table != nullptr ? table->shape[0] : spec.vocab;
  }
  ASSIGN_OR_RETURN(spec.moe.experts, keys.IntOr("expert_count", 0, 0, kMaxExperts));
  if (spec.moe.experts > 0) {
    ASSIGN_OR_RETURN(spec.moe.top_k, keys.Int("expert_used_count", 1, kMaxExperts));
    ASSIGN_OR_RETURN(spec.moe.expert_width, keys.Int("expert_feed_forward_length", 1, kMaxWidth));
  }
  return absl::OkStatus();
}

// The ids that end a text. A file for chatting also ends on its turn marker.
absl::StatusOr<std::vector<TokenId>> ReadEos(const GgufFile& gguf, int64_t vocab) {
  std::vector<TokenId> ids;
  const auto add = [&](int64_t id) {
    const TokenId token = static_cast<TokenId>(id);
    if (id >= 0 && id < vocab && std::find(ids.begin(), ids.end(), token) == ids.end()) {
      ids.push_back(token);
    }
  };
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const int64_t id, gguf.IntOr(key, -1));
    add(id);
  }
  if (ids.empty()) add(1);
  if (gguf.Has("tokenizer.chat_template") && gguf.Has("tokenizer.ggml.tokens")) {
    ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens,
                     gguf.Strings("tokenizer.ggml.tokens"));
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] == "<end_of_turn>" || tokens[i] == "<turn|>" ||
          tokens[i] == "<|tool_response>") {
        add(static_cast<int64_t>(i));
      }
    }
  }
  return ids;
}

}  // namespace

absl::StatusOr<ModelSpec> SpecFromGguf(const GgufFile& gguf) {
  const std::string where = gguf.file().name() + ": ";
  ASSIGN_OR_RETURN(const std::string_view architecture, gguf.String("general.architecture"));
  if (architecture != "gemma3" && architecture != "gemma4") {
    return absl::InvalidArgumentError(
        absl::StrFormat("%sgeneral.architecture is '%s'; supported are gemma3 and gemma4", where,
                        std::string(architecture.substr(0, 80))));
  }
  const Keys keys(gguf, architecture);
  ModelSpec spec;
  spec.family = architecture == "gemma3" ? ModelFamily::kGemma3 : ModelFamily::kGemma4;
  spec.model_type = "gguf:" + std::string(architecture);
  ASSIGN_OR_RETURN(spec.hidden, keys.Int("embedding_length", 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec.max_context, keys.Int("context_length", 1, kMaxPositions));
  ASSIGN_OR_RETURN(spec.norm_eps, keys.FloatOr("attention.layer_norm_rms_epsilon", 1e-6));
  ASSIGN_OR_RETURN(spec.final_softcap, keys.FloatOr("final_logit_softcapping", 0.0));
  const GgufTensor* const embedding = gguf.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError(where + "there is no matrix 'token_embd.weight'");
  }
  spec.vocab = embedding->shape[0];

  ASSIGN_OR_RETURN(const int64_t layers, keys.Int("block_count", 1, kMaxLayers));
  ASSIGN_OR_RETURN(const std::vector<KvFamily> kinds, ReadKinds(gguf, keys, spec.family, layers));
  ASSIGN_OR_RETURN(const std::vector<int64_t> q_heads,
                   keys.PerLayer("attention.head_count", layers, 1, kMaxHeads));
  const bool has_kv_heads = keys.Has("attention.head_count_kv");
  ASSIGN_OR_RETURN(const std::vector<int64_t> kv_heads,
                   keys.PerLayer(has_kv_heads ? "attention.head_count_kv" : "attention.head_count",
                                 layers, 1, kMaxHeads));
  ASSIGN_OR_RETURN(const std::vector<int64_t> widths,
                   keys.PerLayer("feed_forward_length", layers, 1, kMaxWidth));
  ASSIGN_OR_RETURN(const int64_t window, keys.Int("attention.sliding_window", 1, kMaxPositions));
  for (int64_t i = 0; i < layers; ++i) {
    LayerSpec layer;
    layer.kind = kinds[i];
    layer.q_heads = static_cast<int>(q_heads[i]);
    layer.kv_heads = static_cast<int>(kv_heads[i]);
    layer.mlp_width = static_cast<int>(widths[i]);
    layer.window = layer.kind == KvFamily::kSliding ? static_cast<int>(window) : 0;
    spec.layers.push_back(layer);
  }
  RETURN_IF_ERROR(spec.family == ModelFamily::kGemma3 ? ReadGemma3Layers(keys, spec)
                                                      : ReadGemma4Layers(gguf, keys, spec));

  ASSIGN_OR_RETURN(const int64_t bos, gguf.IntOr("tokenizer.ggml.bos_token_id", 2));
  ASSIGN_OR_RETURN(const int64_t pad, gguf.IntOr("tokenizer.ggml.padding_token_id", 0));
  if (bos < 0 || bos > kMaxVocab || pad < -1 || pad > kMaxVocab) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%sthe BOS id %d or the padding id %d is no token", where, bos, pad));
  }
  spec.bos_id = static_cast<TokenId>(bos);
  spec.pad_id = static_cast<TokenId>(pad);
  ASSIGN_OR_RETURN(spec.eos_ids, ReadEos(gguf, spec.vocab));
  spec.display_name = DisplayName(spec);
  RETURN_IF_ERROR(ValidateSpec(spec, where));
  return spec;
}

absl::StatusOr<GenerationDefaults> GenerationFromGguf(const GgufFile& gguf) {
  GenerationDefaults generation;
  if (gguf.Has("general.sampling.temp")) {
    ASSIGN_OR_RETURN(generation.temperature, gguf.Float("general.sampling.temp"));
  }
  if (gguf.Has("general.sampling.top_k")) {
    ASSIGN_OR_RETURN(generation.top_k, gguf.Int("general.sampling.top_k"));
  }
  if (gguf.Has("general.sampling.top_p")) {
    ASSIGN_OR_RETURN(generation.top_p, gguf.Float("general.sampling.top_p"));
  }
  if (gguf.Has("tokenizer.ggml.suppress_tokens")) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> ids, gguf.Ints("tokenizer.ggml.suppress_tokens"));
    for (const int64_t id : ids) {
      if (id >= 0 && id < kMaxVocab) generation.suppress_tokens.push_back(static_cast<TokenId>(id));
    }
  }
  return generation;
}

std::string CanonicalGgufName(std::string_view stored) {
  for (const NamePair& pair : kModelNames) {
    if (stored == pair.gguf) return std::string(pair.canonical);
  }
  constexpr std::string_view kBlock = "blk.";
  if (stored.substr(0, kBlock.size()) != kBlock) return "";
  const size_t dot = stored.find('.', kBlock.size());
  if (dot == std::string_view::npos) return "";
  const std::string_view number = stored.substr(kBlock.size(), dot - kBlock.size());
  int layer = -1;
  if (!absl::SimpleAtoi(absl::string_view(number.data(), number.size()), &layer) || layer < 0) {
    return "";
  }
  for (const NamePair& pair : kLayerNames) {
    if (stored.substr(dot + 1) == pair.gguf) {
      return absl::StrFormat("layers.%d.%s", layer, std::string(pair.canonical));
    }
  }
  return "";
}

}  // namespace lapidary
