#include "worker/kv_choice.h"

#include <cmath>

#include "absl/strings/str_format.h"

namespace lapidary {

absl::StatusOr<KvChoice> ChooseKv(std::string_view format, std::string_view type,
                                  ComputeType compute) {
  KvChoice choice;
  if (format.empty() || format == "auto" || format == "folded") {
    choice.format = KvFormat::kFolded;  // docs/kv-cache.md has the measurements
  } else if (format == "single") {
    choice.format = KvFormat::kSingle;
  } else if (format != "split") {
    return absl::InvalidArgumentError(
        absl::StrFormat("the KV format \"%s\" is none of auto, split, folded and single", format));
  }
  if (type == "int8") {
    choice.type = KvType::kInt8;
  } else if (type == "bf16") {
    choice.type = KvType::kBf16;
  } else if (type.empty() || type == "auto") {
    choice.type = compute == ComputeType::kFp32 ? KvType::kFp32 : KvType::kBf16;
  } else {
    return absl::InvalidArgumentError(
        absl::StrFormat("the KV type \"%s\" is none of auto, bf16 and int8%s", type,
                        type == "fp8" ? " (fp8 is a GPU's)" : ""));
  }
  return choice;
}

std::vector<KvLayout> PlaceKv(const std::vector<LayerWeights>& layers, const KvChoice& choice) {
  std::vector<bool> shared(layers.size(), false);
  for (const LayerWeights& layer : layers) {
    if (!layer.owns_kv()) shared[layer.spec.kv_owner] = true;
  }
  std::vector<KvLayout> layouts;
  for (const LayerWeights& layer : layers) {
    KvLayout layout{.type = choice.type, .head_dim = layer.spec.head_dim};
    if (layer.spec.k_eq_v && layer.v_norm && layer.spec.kind == KvFamily::kGlobal &&
        layer.owns_kv() && !shared[layer.index]) {
      layout.format = choice.format;
      if (choice.format != KvFormat::kSplit) layout.rotated_pairs = layer.spec.rope.rotated_pairs;
    }
    layouts.push_back(layout);
  }
  return layouts;
}

std::vector<float> KeyBalance(const KvLayout& layout, const RopeSpec& rope,
                              const std::vector<float>& key_norm) {
  if (layout.type != KvType::kInt8 || layout.key_columns() == 0 || key_norm.empty()) return {};
  const int dim = layout.head_dim, half = dim / 2;
  std::vector<float> factor(dim, 1.0f);
  const auto usable = [](float f) { return std::isfinite(f) && f > 1e-20f ? f : 1.0f; };
  for (int i = 0; i < rope.rotated_pairs; ++i) {
    factor[i] = factor[i + half] =
        usable(std::hypot(key_norm[i], key_norm[i + half]) * 0.70710678f);
  }
  if (layout.format != KvFormat::kSplit) return factor;
  for (int c = 0; c < dim; ++c) {
    const bool turns = c < half + rope.rotated_pairs && c % half < rope.rotated_pairs;
    if (!turns) factor[c] = usable(std::fabs(key_norm[c]));
  }
  return factor;
}

}  // namespace lapidary
