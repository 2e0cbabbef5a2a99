// What --kv-format and --kv-type mean on a CPU, for a model's layers.
#pragma once
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/dtype.h"
#include "kernels/attention/kv_page.h"
#include "worker/weights.h"

namespace lapidary {

struct KvChoice {
  KvFormat format = KvFormat::kSplit;  // of global K = V layers
  KvType type = KvType::kBf16;
};

// INVALID_ARGUMENT for a word that is none. Empty is auto.
absl::StatusOr<KvChoice> ChooseKv(std::string_view format, std::string_view type,
                                  ComputeType compute);

// How each owning layer's heads lie in a page, by layer index. The chosen format for global layers
// whose keys are their values, turned and weighed, and are read by nobody else: another layer would
// need the owner's w_k.
std::vector<KvLayout> PlaceKv(const std::vector<LayerWeights>& layers, const KvChoice& choice);

}  // namespace lapidary
