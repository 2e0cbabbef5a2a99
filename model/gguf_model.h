// What a GGUF file of architecture gemma3 or gemma4 says about its model: the spec, the sampling
// defaults, and Hugging Face's name for each tensor.
#pragma once
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/gguf_file.h"
#include "model/model_spec.h"

namespace lapidary {

// INVALID_ARGUMENT for another architecture (named, with the supported ones), an absent key or a
// value out of range.
absl::StatusOr<ModelSpec> SpecFromGguf(const GgufFile& gguf);
absl::StatusOr<GenerationDefaults> GenerationFromGguf(const GgufFile& gguf);

// The canonical name of a stored one: "blk.3.attn_q.weight" is "layers.3.self_attn.q_proj.weight".
// Experts whose gate and up are stored apart become "layers.N.experts.gate_proj" and "up_proj".
// Empty for a name that no Gemma has; "rope_freqs.weight" (in the spec already) stays as it is.
std::string CanonicalGgufName(std::string_view stored);

}  // namespace lapidary
