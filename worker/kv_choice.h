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

// int8 pages: a factor for each column of a head, by which keys are divided before they are stored
// and queries multiplied. Keys are normed numbers times w_k, whose largest elements are several
// times the others (3 to 9 times the root mean square in Gemma 3 270M) and would set the one scale
// of the row; so take the factor from w_k. A pair that turns together has one factor, else the
// rotation would not commute with it. 1 for columns that the format does not store as keys. Empty
// where nothing is to be balanced: other types, no key norm, no keys in the pages.
std::vector<float> KeyBalance(const KvLayout& layout, const RopeSpec& rope,
                              const std::vector<float>& key_norm);

}  // namespace lapidary
