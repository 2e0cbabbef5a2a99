#include "model/config_reader.h"

#include <unistd.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/internal/json_fields.h"
#include "model/spec_rules.h"

namespace lapidary {
namespace {

using internal::JsonFields;
using nlohmann::json;

struct TypeInfo {
  const char* name;
  ModelFamily family;
  bool unified;  // the 12B's config class: no PLE and no experts unless a key says so
};
constexpr TypeInfo kTypes[] = {
    {"gemma4", ModelFamily::kGemma4, false},
    {"gemma4_text", ModelFamily::kGemma4, false},
    {"gemma4_unified", ModelFamily::kGemma4, true},
    {"gemma4_unified_text", ModelFamily::kGemma4, true},
    {"gemma3", ModelFamily::kGemma3, false},
    {"gemma3_text", ModelFamily::kGemma3, false},
};

absl::StatusOr<TypeInfo> FindType(const JsonFields& config) {
  ASSIGN_OR_RETURN(const std::string type, config.String("model_type", ""));
  for (const TypeInfo& known : kTypes) {
    if (type == known.name) return known;
  }
  const std::string found = type.empty() ? "missing" : absl::StrFormat("'%s'", type);
  return config.Bad("model_type",
                    absl::StrFormat("is %s; supported are gemma4, gemma4_text, gemma4_unified, "
                                    "gemma4_unified_text, gemma3 and gemma3_text",
                                    found));
}

// Hugging Face's class defaults for keys that a file leaves out.
struct Defaults {
  int64_t vocab, layers, kv_heads = 4, window, positions, ple_dim;
};
Defaults DefaultsOf(const TypeInfo& type) {
  if (type.family == ModelFamily::kGemma3) {
    return {.vocab = 262208, .layers = 26, .window = 4096, .positions = 131072, .ple_dim = 0};
  }
  if (type.unified) {
    return {.vocab = 262144, .layers = 30, .window = 1024, .positions = 262144, .ple_dim = 0};
  }
  return {.vocab = 262144, .layers = 30, .window = 512, .positions = 131072, .ple_dim = 256};
}

// What a config may say and we do not compute.
absl::Status RefuseUnsupported(const JsonFields& text, ModelFamily family) {
  ASSIGN_OR_RETURN(const std::string activation,
                   text.String("hidden_activation", "gelu_pytorch_tanh"));
  if (activation != "gelu_pytorch_tanh") {
    return text.Bad("hidden_activation",
                    absl::StrFormat("is '%s'; only gelu_pytorch_tanh is supported", activation));
  }
  ASSIGN_OR_RETURN(const bool bias, text.Bool("attention_bias", false));
  if (bias) return text.Bad("attention_bias", "is true; biases are not supported");
  ASSIGN_OR_RETURN(const double softcap, text.Float("attn_logit_softcapping", 0, 0, 1e9));
  if (softcap != 0) {
    return text.Bad("attn_logit_softcapping", absl::StrFormat("is %g; a soft cap inside attention "
                                                              "is not supported",
                                                              softcap));
  }
  const json* const direction = text.Get("use_bidirectional_attention");
  const bool non_causal = direction != nullptr && *direction != false && *direction != "vision";
  if (non_causal) {
    return text.Bad("use_bidirectional_attention",
                    family == ModelFamily::kGemma3
                        ? "is set: an embedding model, not one that generates"
                        : "is neither null nor \"vision\": not a model that generates");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<KvFamily>> ReadLayerKinds(const JsonFields& text, ModelFamily family,
                                                     int64_t layers) {
  std::vector<KvFamily> kinds;
  const json* const list = text.Get("layer_types");
  if (list == nullptr) {
    int64_t period = 6;
    for (const char* key : {"_sliding_window_pattern", "sliding_window_pattern"}) {
      ASSIGN_OR_RETURN(period, text.Int(key, period, 1, kMaxLayers));
    }
    for (int64_t i = 0; i < layers; ++i) {
      kinds.push_back((i + 1) % period == 0 ? KvFamily::kGlobal : KvFamily::kSliding);
    }
  } else {
    if (!list->is_array() || static_cast<int64_t>(list->size()) != layers) {
      return text.Bad("layer_types",
                      absl::StrFormat("has %d entries for %d layers", list->size(), layers));
    }
    for (const json& kind : *list) {
      if (kind == "sliding_attention") {
        kinds.push_back(KvFamily::kSliding);
      } else if (kind == "full_attention") {
        kinds.push_back(KvFamily::kGlobal);
      } else {
        return text.Bad("layer_types", absl::StrFormat("has an entry for layer %d that is neither "
                                                       "sliding_attention nor full_attention",
                                                       kinds.size()));
      }
    }
  }
  // Gemma 4 always ends on a full layer, whatever the list says; Gemma 3 ends where it ends.
  if (family == ModelFamily::kGemma4) kinds.back() = KvFamily::kGlobal;
  return kinds;
}

// RoPE of one layer kind before the head size is known.
struct RopeParameters {
  double theta = 1e4;
  bool proportional = false;
  double fraction = 1.0;  // of the head that rotates, when proportional
  double factor = 1.0;

  RopeSpec For(int head_dim) const {
    const double rotated = proportional ? fraction : 1.0;
    return {.theta = theta,
            .rotated_pairs = static_cast<int>(std::floor(rotated * head_dim / 2)),
            .factor = factor};
  }
};

// Overwrites what `fields` (an entry of rope_parameters, or a rope_scaling) says.
absl::Status ReadRopeEntry(const JsonFields& fields, RopeParameters& rope) {
  ASSIGN_OR_RETURN(const std::string older_type,
                   fields.String("type", rope.proportional ? "proportional" : "default"));
  ASSIGN_OR_RETURN(const std::string type, fields.String("rope_type", older_type));
  ASSIGN_OR_RETURN(rope.theta, fields.Float("rope_theta", rope.theta, 1e-6, 1e15));
  rope.proportional = type == "proportional";
  if (rope.proportional) {
    ASSIGN_OR_RETURN(rope.fraction, fields.Float("partial_rotary_factor", 1.0, 0, 1));
    ASSIGN_OR_RETURN(rope.factor, fields.Float("factor", 1.0, 1e-6, 1e6));
  } else if (type == "linear") {
    ASSIGN_OR_RETURN(rope.factor, fields.Float("factor", 0, 1e-6, 1e6));
    if (rope.factor == 0) return fields.Bad("factor", "is missing for linear RoPE scaling");
    ASSIGN_OR_RETURN(const double fraction, fields.Float("partial_rotary_factor", 1.0, 0, 1));
    if (fraction != 1.0) {
      return fields.Bad("partial_rotary_factor", "below 1 is not supported with linear scaling");
    }
  } else if (type != "default") {
    return fields.Bad("rope_type", absl::StrFormat("is '%s'; supported are default, linear and "
                                                   "proportional",
                                                   type));
  }
  return absl::OkStatus();
}

// Indexed by KvFamily.
absl::StatusOr<std::array<RopeParameters, kKvFamilies>> ReadRope(const JsonFields& text,
                                                                 ModelFamily family) {
  std::array<RopeParameters, kKvFamilies> ropes;
  RopeParameters& sliding = ropes[static_cast<int>(KvFamily::kSliding)];
  RopeParameters& global = ropes[static_cast<int>(KvFamily::kGlobal)];
  global.theta = 1e6;
  if (family == ModelFamily::kGemma4) {
    global.proportional = true;
    global.fraction = 0.25;
  }
  // The older flat keys first; an entry of rope_parameters wins.
  ASSIGN_OR_RETURN(global.theta, text.Float("rope_theta", global.theta, 1e-6, 1e15));
  ASSIGN_OR_RETURN(sliding.theta, text.Float("rope_local_base_freq", sliding.theta, 1e-6, 1e15));
  if (global.proportional) {
    for (const char* key : {"partial_rotary_factor", "global_partial_rotary_factor"}) {
      ASSIGN_OR_RETURN(global.fraction, text.Float(key, global.fraction, 0, 1));
    }
  }
  ASSIGN_OR_RETURN(const json* const scaling, text.Object("rope_scaling"));
  if (scaling != nullptr) {
    RETURN_IF_ERROR(ReadRopeEntry(JsonFields(*scaling, text.where("rope_scaling.")), global));
  }
  ASSIGN_OR_RETURN(const json* const parameters, text.Object("rope_parameters"));
  if (parameters == nullptr) return ropes;
  const JsonFields fields(*parameters, text.where("rope_parameters."));
  ASSIGN_OR_RETURN(const json* const full, fields.Object("full_attention"));
  ASSIGN_OR_RETURN(const json* const local, fields.Object("sliding_attention"));
  if (full == nullptr && local == nullptr) {  // one set, not one per layer type: the global one
    RETURN_IF_ERROR(ReadRopeEntry(fields, global));
    return ropes;
  }
  // Within an entry, rope_type alone decides: what it leaves out is not inherited.
  if (full != nullptr) {
    global.proportional = false;
    RETURN_IF_ERROR(ReadRopeEntry(JsonFields(*full, fields.where("full_attention.")), global));
  }
  if (local != nullptr) {
    RETURN_IF_ERROR(ReadRopeEntry(JsonFields(*local, fields.where("sliding_attention.")), sliding));
  }
  return ropes;
}

// The newer form of sizes that differ between layers: {"05": {"head_dim": 512, ...}, ...}.
absl::Status ApplyPerLayerConfig(const JsonFields& text, const json& entries,
                                 std::vector<LayerSpec>& layers) {
  const JsonFields all(entries, text.where("per_layer_config."));
  for (const auto& [key, entry] : entries.items()) {
    int index = -1;
    if (!absl::SimpleAtoi(key, &index) || index < 0 || index >= static_cast<int>(layers.size()) ||
        !entry.is_object()) {
      return all.Bad(key.c_str(), absl::StrFormat("is not an object for one of layers 0 to %d",
                                                  layers.size() - 1));
    }
    LayerSpec& layer = layers[index];
    const std::string dotted = key + ".";
    const JsonFields fields(entry, all.where(dotted.c_str()));
    for (const auto& [name, value] : entry.items()) {
      (void)value;
      if (name != "head_dim" && name != "num_key_value_heads" && name != "num_attention_heads" &&
          name != "intermediate_size" && name != "sliding_window") {
        return fields.Bad(name.c_str(), "is not a size that may differ between layers");
      }
    }
    ASSIGN_OR_RETURN(layer.head_dim, fields.Int("head_dim", layer.head_dim, 2, kMaxHeadDim));
    ASSIGN_OR_RETURN(layer.kv_heads,
                     fields.Int("num_key_value_heads", layer.kv_heads, 1, kMaxHeads));
    ASSIGN_OR_RETURN(layer.q_heads, fields.Int("num_attention_heads", layer.q_heads, 1, kMaxHeads));
    ASSIGN_OR_RETURN(layer.mlp_width,
                     fields.Int("intermediate_size", layer.mlp_width, 1, kMaxWidth));
    if (layer.kind == KvFamily::kSliding) {
      ASSIGN_OR_RETURN(layer.window, fields.Int("sliding_window", layer.window, 1, kMaxPositions));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadLayers(const JsonFields& text, const TypeInfo& type, ModelSpec& spec) {
  const Defaults defaults = DefaultsOf(type);
  ASSIGN_OR_RETURN(const int64_t count,
                   text.Int("num_hidden_layers", defaults.layers, 1, kMaxLayers));
  ASSIGN_OR_RETURN(const std::vector<KvFamily> kinds, ReadLayerKinds(text, type.family, count));
  const auto ropes = ReadRope(text, type.family);
  if (!ropes.ok()) return ropes.status();

  LayerSpec common;
  ASSIGN_OR_RETURN(common.q_heads, text.Int("num_attention_heads", 8, 1, kMaxHeads));
  ASSIGN_OR_RETURN(common.kv_heads,
                   text.Int("num_key_value_heads", defaults.kv_heads, 1, kMaxHeads));
  ASSIGN_OR_RETURN(common.head_dim, text.Int("head_dim", 256, 2, kMaxHeadDim));
  ASSIGN_OR_RETURN(common.window, text.Int("sliding_window", defaults.window, 1, kMaxPositions));
  ASSIGN_OR_RETURN(common.mlp_width, text.Int("intermediate_size", 9216, 1, kMaxWidth));

  bool k_eq_v = false;
  int64_t shared = 0;
  int64_t global_head_dim = common.head_dim, global_kv_heads = common.kv_heads;
  bool double_wide = false;
  if (type.family == ModelFamily::kGemma4) {
    ASSIGN_OR_RETURN(k_eq_v, text.Bool("attention_k_eq_v", false));
    ASSIGN_OR_RETURN(shared, text.Int("num_kv_shared_layers", 0, 0, kMaxLayers));
    ASSIGN_OR_RETURN(double_wide, text.Bool("use_double_wide_mlp", false));
    if (!text.object().contains("per_layer_config")) {
      ASSIGN_OR_RETURN(global_head_dim, text.Int("global_head_dim", 512, 2, kMaxHeadDim));
      ASSIGN_OR_RETURN(const int64_t heads,
                       text.Int("num_global_key_value_heads", global_kv_heads, 1, kMaxHeads));
      if (k_eq_v) global_kv_heads = heads;  // only consulted then
    }
  }
  for (const KvFamily kind : kinds) {
    LayerSpec layer = common;
    layer.kind = kind;
    if (kind == KvFamily::kGlobal) {
      layer.window = 0;
      layer.head_dim = static_cast<int>(global_head_dim);
      layer.kv_heads = static_cast<int>(global_kv_heads);
      layer.k_eq_v = k_eq_v;
    }
    spec.layers.push_back(layer);
  }
  ASSIGN_OR_RETURN(const json* const per_layer, text.Object("per_layer_config"));
  if (per_layer != nullptr) {
    RETURN_IF_ERROR(ApplyPerLayerConfig(text, *per_layer, spec.layers));
  }
  RETURN_IF_ERROR(AssignKvOwners(spec, shared, text.where("num_kv_shared_layers: ")));
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    LayerSpec& layer = spec.layers[i];
    layer.rope = (*ropes)[static_cast<int>(layer.kind)].For(layer.head_dim);
    if (double_wide && spec.shares_kv(static_cast<int>(i))) layer.mlp_width *= 2;
  }
  return absl::OkStatus();
}

absl::Status ReadPleAndExperts(const JsonFields& text, const TypeInfo& type, ModelSpec& spec) {
  const Defaults defaults = DefaultsOf(type);
  ASSIGN_OR_RETURN(spec.ple_dim,
                   text.Int("hidden_size_per_layer_input", defaults.ple_dim, 0, kMaxPleDim));
  if (spec.ple_dim > 0) {
    ASSIGN_OR_RETURN(spec.ple_vocab, text.Int("vocab_size_per_layer_input", 262144, 1, kMaxVocab));
  }
  ASSIGN_OR_RETURN(const bool moe, text.Bool("enable_moe_block", false));
  if (!moe) return absl::OkStatus();
  ASSIGN_OR_RETURN(spec.moe.experts, text.Int("num_experts", 0, 1, kMaxExperts));
  ASSIGN_OR_RETURN(spec.moe.top_k, text.Int("top_k_experts", 0, 1, kMaxExperts));
  ASSIGN_OR_RETURN(const int64_t older, text.Int("expert_intermediate_size", 0, 1, kMaxWidth));
  ASSIGN_OR_RETURN(spec.moe.expert_width, text.Int("moe_intermediate_size", older, 1, kMaxWidth));
  for (const auto& [key, value] :
       {std::pair("num_experts", spec.moe.experts), std::pair("top_k_experts", spec.moe.top_k),
        std::pair("moe_intermediate_size", spec.moe.expert_width)}) {
    if (value == 0) return text.Bad(key, "is missing, and enable_moe_block is true");
  }
  return absl::OkStatus();
}

// The nearest of the two places that has the key.
const JsonFields& WhoHas(const char* key, const JsonFields& outer, const JsonFields& text) {
  return outer.Has(key) ? outer : text;
}

absl::Status ReadTokens(const JsonFields& outer, const JsonFields& text, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.bos_id,
                   WhoHas("bos_token_id", outer, text).Int("bos_token_id", 2, 0, kMaxVocab));
  ASSIGN_OR_RETURN(spec.pad_id,
                   WhoHas("pad_token_id", outer, text).Int("pad_token_id", 0, -1, kMaxVocab));
  ASSIGN_OR_RETURN(spec.eos_ids, WhoHas("eos_token_id", outer, text).TokenIds("eos_token_id"));
  if (spec.eos_ids.empty()) spec.eos_ids = {1};
  return absl::OkStatus();
}

template <class T, class Value>
void Keep(const JsonFields& fields, const char* key, Value value, std::optional<T>& out) {
  if (fields.Has(key)) out = static_cast<T>(value);
}

absl::StatusOr<GenerationDefaults> ReadGeneration(const std::string& path) {
  GenerationDefaults generation;
  if (access(path.c_str(), F_OK) != 0) return generation;
  ASSIGN_OR_RETURN(const json root, internal::ReadJsonObject(path));
  const JsonFields fields(root, path + ": ");
  ASSIGN_OR_RETURN(const double temperature, fields.Float("temperature", 1, 0, 1e6));
  ASSIGN_OR_RETURN(const int64_t top_k, fields.Int("top_k", 0, 0, kMaxVocab));
  ASSIGN_OR_RETURN(const double top_p, fields.Float("top_p", 1, 0, 1));
  ASSIGN_OR_RETURN(const bool do_sample, fields.Bool("do_sample", false));
  Keep(fields, "temperature", temperature, generation.temperature);
  Keep(fields, "top_k", top_k, generation.top_k);
  Keep(fields, "top_p", top_p, generation.top_p);
  Keep(fields, "do_sample", do_sample, generation.do_sample);
  ASSIGN_OR_RETURN(generation.eos_ids, fields.TokenIds("eos_token_id"));
  ASSIGN_OR_RETURN(generation.suppress_tokens, fields.TokenIds("suppress_tokens"));
  return generation;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& config_path) {
  ASSIGN_OR_RETURN(const json root, internal::ReadJsonObject(config_path));
  const JsonFields outer(root, config_path + ": ");
  ASSIGN_OR_RETURN(TypeInfo type, FindType(outer));
  ASSIGN_OR_RETURN(const json* const nested, outer.Object("text_config"));
  const JsonFields text(nested != nullptr ? *nested : root,
                        nested != nullptr ? outer.where("text_config.") : outer.where(""));
  if (nested != nullptr && text.Has("model_type")) {
    ASSIGN_OR_RETURN(const TypeInfo inner, FindType(text));
    if (inner.family != type.family) {
      return text.Bad("model_type", absl::StrFormat("is %s inside a %s", inner.name, type.name));
    }
    type.unified = type.unified || inner.unified;
  }

  ModelConfig config;
  ModelSpec& spec = config.spec;
  spec.family = type.family;
  ASSIGN_OR_RETURN(spec.model_type, outer.String("model_type", ""));
  RETURN_IF_ERROR(RefuseUnsupported(text, type.family));
  const Defaults defaults = DefaultsOf(type);
  ASSIGN_OR_RETURN(spec.hidden, text.Int("hidden_size", 2304, 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec.vocab, text.Int("vocab_size", defaults.vocab, 1, kMaxVocab));
  ASSIGN_OR_RETURN(spec.max_context,
                   text.Int("max_position_embeddings", defaults.positions, 1, kMaxPositions));
  ASSIGN_OR_RETURN(spec.norm_eps, text.Float("rms_norm_eps", 1e-6, 1e-30, 0.5));
  ASSIGN_OR_RETURN(spec.final_softcap, text.Float("final_logit_softcapping", 0, 0, 1e6));
  if (type.family == ModelFamily::kGemma3) {
    ASSIGN_OR_RETURN(const double scalar, text.Float("query_pre_attn_scalar", 256, 1e-6, 1e9));
    spec.attention_scale = 1.0 / std::sqrt(scalar);
    spec.norm_weight_plus_one = true;
    spec.v_norm = false;
    spec.layer_scalar = false;
  } else {
    RETURN_IF_ERROR(ReadPleAndExperts(text, type, spec));
  }
  RETURN_IF_ERROR(ReadLayers(text, type, spec));
  RETURN_IF_ERROR(ReadTokens(outer, text, spec));
  spec.display_name = DisplayName(spec);
  RETURN_IF_ERROR(ValidateSpec(spec, config_path + ": "));

  const std::string folder = config_path.substr(0, config_path.find_last_of('/') + 1);
  ASSIGN_OR_RETURN(config.generation, ReadGeneration(folder + "generation_config.json"));
  if (!config.generation.eos_ids.empty()) spec.eos_ids = config.generation.eos_ids;
  ASSIGN_OR_RETURN(const json* const quantization, outer.Object("quantization_config"));
  if (quantization != nullptr) {
    const JsonFields fields(*quantization, outer.where("quantization_config."));
    ASSIGN_OR_RETURN(config.quantization, fields.String("quant_method", "unnamed"));
  }
  return config;
}

}  // namespace lapidary
