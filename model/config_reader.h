// config.json and generation_config.json to a ModelSpec.
//
// Accepts gemma4, gemma4_text, gemma4_unified, gemma4_unified_text, gemma3 and gemma3_text; nested
// (text_config inside) or flat; `rope_parameters` per layer type, or the older rope_theta,
// rope_local_base_freq and rope_scaling; `per_layer_config`, or the older global_head_dim and
// num_global_key_value_heads; moe_intermediate_size, or the older expert_intermediate_size;
// layer_types, or a period. A key that is absent or null has the default of Hugging Face's class.
// What would compute something else than we do (biases, other activations, non-causal attention,
// other RoPE types) is refused by name.
#pragma once
#include <string>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/model_spec.h"

namespace lapidary {

struct ModelConfig {
  ModelSpec spec;
  GenerationDefaults generation;
  std::string quantization;  // quant_method of quantised safetensors, which we do not read
};

// `config_path` is the config.json; generation_config.json is read from the same folder when there.
// INVALID_ARGUMENT names the file, the key, what it holds and what was expected.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& config_path);

}  // namespace lapidary
