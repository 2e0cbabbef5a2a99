#include "worker/cuda/gpu_kv.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {

absl::StatusOr<GpuKv> GpuKv::Plan(const std::vector<LayerWeights>& layers, std::string_view format,
                                  std::string_view type) {
  GpuKv kv;
  KvFormat of_equal_layers = KvFormat::kFolded;  // the fewest bytes moved
  if (format == "split") {
    of_equal_layers = KvFormat::kSplit;
  } else if (!format.empty() && format != "auto" && format != "folded") {
    return absl::InvalidArgumentError(
        absl::StrFormat("the KV format \"%s\" is none of a GPU's: auto, split and folded", format));
  }
  if (type == "fp8") {
    kv.type_ = GpuKvType::kE4m3;
  } else if (!type.empty() && type != "auto" && type != "bf16") {
    return absl::InvalidArgumentError(
        absl::StrFormat("the KV type \"%s\" is none of a GPU's: auto, bf16 and fp8", type));
  }
  std::vector<bool> shared(layers.size(), false);
  for (const LayerWeights& layer : layers) {
    if (!layer.owns_kv()) shared[layer.spec.kv_owner] = true;
  }
  kv.offsets_.resize(layers.size(), -1);
  for (const LayerWeights& layer : layers) {
    GpuKvLayout layout{.type = kv.type_, .head_dim = layer.spec.head_dim};
    // Another layer's queries would need the owner's w_k.
    if (layer.spec.k_eq_v && layer.v_norm && layer.owns_kv() &&
        layer.spec.kind == KvFamily::kGlobal && !shared[layer.index]) {
      layout.format = of_equal_layers;
      if (layout.format == KvFormat::kFolded) layout.rotated_pairs = layer.spec.rope.rotated_pairs;
    }
    kv.layouts_.push_back(layout);
    if (!layer.owns_kv()) continue;
    int64_t& page_bytes = kv.page_bytes_[static_cast<int>(layer.spec.kind)];
    kv.offsets_[layer.index] = page_bytes;
    page_bytes += int64_t{layer.kv_heads} * layout.head_bytes();
  }
  return kv;
}

absl::Status GpuKv::Allocate(const std::array<int32_t, kKvFamilies>& pages) {
  for (int f = 0; f < kKvFamilies; ++f) {
    if (pages[f] < 0) return absl::InvalidArgumentError("a negative number of pages");
    const int64_t bytes = page_bytes_[f] * pages[f];
    pools_[f] = DeviceBuffer();
    ASSIGN_OR_RETURN(pools_[f],
                     DeviceBuffer::Allocate(bytes, absl::StrFormat("%d KV pages of %d bytes",
                                                                   pages[f], page_bytes_[f])));
    // What a page held before, or never, is multiplied by a weight of 0: it must be a number.
    if (bytes > 0) {
      RETURN_IF_CUDA_ERROR("clearing the KV pages",
                           cudaMemset(pools_[f].data(), 0, static_cast<size_t>(bytes)));
    }
    pages_[f] = pages[f];
  }
  RETURN_IF_CUDA_ERROR("clearing the KV pages", cudaStreamSynchronize(nullptr));  // others do not
  return absl::OkStatus();
}

}  // namespace lapidary
