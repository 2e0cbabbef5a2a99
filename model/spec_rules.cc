#include "model/spec_rules.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

struct Limit {
  const char* name;
  int64_t value, low, high;
};

absl::Status CheckLimits(std::initializer_list<Limit> limits, const std::string& where) {
  for (const Limit& limit : limits) {
    if (limit.value < limit.low || limit.value > limit.high) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s%s is %d, expected %d to %d", where, limit.name, limit.value, limit.low, limit.high));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLayer(const ModelSpec& spec, int index, const std::string& where) {
  const LayerSpec& layer = spec.layers[index];
  const std::string here = absl::StrFormat("%slayer %d: ", where, index);
  const bool sliding = layer.kind == KvFamily::kSliding;
  RETURN_IF_ERROR(
      CheckLimits({{"query heads", layer.q_heads, 1, kMaxHeads},
                   {"key/value heads", layer.kv_heads, 1, kMaxHeads},
                   {"head size", layer.head_dim, 2, kMaxHeadDim},
                   {"sliding window", layer.window, sliding ? 1 : 0, sliding ? kMaxPositions : 0},
                   {"rotated pairs", layer.rope.rotated_pairs, 0, layer.head_dim / 2},
                   {"MLP width", layer.mlp_width, 1, kMaxWidth},
                   {"KV owner", layer.kv_owner, 0, index}},
                  here));
  if (layer.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%sthe head size %d is odd, and RoPE turns pairs", here, layer.head_dim));
  }
  if (layer.q_heads % layer.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s%d query heads are not a multiple of %d key/value heads", here,
                        layer.q_heads, layer.kv_heads));
  }
  if (!(layer.rope.theta > 0 && layer.rope.theta < 1e15) ||
      !(layer.rope.factor > 0 && layer.rope.factor < 1e9)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%sRoPE theta %g or factor %g is out of range", here, layer.rope.theta, layer.rope.factor));
  }
  const LayerSpec& owner = spec.layers[layer.kv_owner];
  if (owner.kind != layer.kind || owner.kv_heads != layer.kv_heads ||
      owner.head_dim != layer.head_dim || owner.k_eq_v != layer.k_eq_v ||
      owner.q_heads != layer.q_heads) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%sshares the KV of layer %d, whose heads have another shape", here, layer.kv_owner));
  }
  return absl::OkStatus();
}

// In floating point: a hostile config must not overflow the check itself.
double RoughParameters(const ModelSpec& spec) {
  const double m = spec.hidden;
  double total = double(spec.vocab) * m;
  const double ple_width = double(spec.ple_dim) * double(spec.layers.size());
  if (spec.ple_dim > 0) total += ple_width * (double(spec.ple_vocab) + m);
  for (const LayerSpec& layer : spec.layers) {
    total += m * layer.head_dim * (2.0 * layer.q_heads + 2.0 * layer.kv_heads);
    total += 3.0 * m * layer.mlp_width + 2.0 * m * spec.ple_dim;
    total += spec.moe.experts * (3.0 * m * spec.moe.expert_width + m);
  }
  return total;
}

}  // namespace

absl::Status AssignKvOwners(ModelSpec& spec, int64_t shared, const std::string& where) {
  const int layers = static_cast<int>(spec.layers.size());
  if (shared < 0 || shared >= layers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s%d of %d layers share the KV of others; at least one must own it", where,
                        shared, layers));
  }
  const int first_shared = layers - static_cast<int>(shared);
  int last_owner[kKvFamilies] = {-1, -1};
  for (int i = 0; i < layers; ++i) {
    int& owner = last_owner[static_cast<int>(spec.layers[i].kind)];
    if (i < first_shared) owner = i;
    if (owner < 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%slayer %d shares KV, but no %s layer before layer %d owns any", where, i,
          spec.layers[i].kind == KvFamily::kSliding ? "sliding" : "full", first_shared));
    }
    spec.layers[i].kv_owner = owner;
  }
  return absl::OkStatus();
}

absl::Status ValidateSpec(const ModelSpec& spec, const std::string& where) {
  RETURN_IF_ERROR(
      CheckLimits({{"layer count", static_cast<int64_t>(spec.layers.size()), 1, kMaxLayers},
                   {"hidden size", spec.hidden, 1, kMaxHidden},
                   {"vocabulary", spec.vocab, 1, kMaxVocab},
                   {"per-layer embedding width", spec.ple_dim, 0, kMaxPleDim},
                   {"per-layer vocabulary", spec.ple_vocab, spec.ple_dim > 0 ? 1 : 0, kMaxVocab},
                   {"context", spec.max_context, 1, kMaxPositions},
                   {"expert count", spec.moe.experts, 0, kMaxExperts}},
                  where));
  if (spec.moe.experts > 0) {
    RETURN_IF_ERROR(CheckLimits({{"experts per token", spec.moe.top_k, 1, spec.moe.experts},
                                 {"expert width", spec.moe.expert_width, 1, kMaxWidth}},
                                where));
  }
  if (!(spec.norm_eps > 0 && spec.norm_eps < 1) ||
      !(spec.attention_scale > 0 && spec.attention_scale < 1e6) ||
      !(spec.final_softcap >= 0 && spec.final_softcap < 1e9)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%snorm epsilon %g, attention scale %g or final soft cap %g is out of range", where,
        spec.norm_eps, spec.attention_scale, spec.final_softcap));
  }
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    RETURN_IF_ERROR(CheckLayer(spec, static_cast<int>(i), where));
  }
  const double parameters = RoughParameters(spec);
  if (parameters > kMaxParameters) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%sthe sizes make %.3g parameters, more than the %.3g that we can address",
                        where, parameters, kMaxParameters));
  }
  return absl::OkStatus();
}

std::string DisplayName(const ModelSpec& spec) {
  struct Released {
    ModelFamily family;
    int hidden;
    size_t layers;
    const char* name;
  };
  static constexpr Released kReleased[] = {
      {ModelFamily::kGemma4, 5376, 60, "Gemma 4 31B"},
      {ModelFamily::kGemma4, 2816, 30, "Gemma 4 26B-A4B"},
      {ModelFamily::kGemma4, 3840, 48, "Gemma 4 12B"},
      {ModelFamily::kGemma4, 2560, 42, "Gemma 4 E4B"},
      {ModelFamily::kGemma4, 1536, 35, "Gemma 4 E2B"},
      {ModelFamily::kGemma3, 640, 18, "Gemma 3 270M"},
      {ModelFamily::kGemma3, 1152, 26, "Gemma 3 1B"},
      {ModelFamily::kGemma3, 2560, 34, "Gemma 3 4B"},
      {ModelFamily::kGemma3, 3840, 48, "Gemma 3 12B"},
      {ModelFamily::kGemma3, 5376, 62, "Gemma 3 27B"},
  };
  for (const Released& released : kReleased) {
    if (spec.family == released.family && spec.hidden == released.hidden &&
        spec.layers.size() == released.layers) {
      return released.name;
    }
  }
  return spec.model_type;
}

}  // namespace lapidary
