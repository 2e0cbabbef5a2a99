// How a model's keys and values lie in a GPU's pages.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/gpu_kv_page.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/weights.h"

namespace lapidary {

// The layouts of all layers and the pools of both families.
class GpuKv {
 public:
  // `format`: auto (folded), split or folded; `type`: auto (bf16), bf16 or fp8. INVALID_ARGUMENT
  // for a word that is none, or that only a CPU knows.
  static absl::StatusOr<GpuKv> Plan(const std::vector<LayerWeights>& layers,
                                    std::string_view format, std::string_view type);
  // RESOURCE_EXHAUSTED when the GPU is full.
  absl::Status Allocate(const std::array<int32_t, kKvFamilies>& pages);

  // Of the layer whose pages `layer` reads.
  const GpuKvLayout& layout(const LayerWeights& layer) const {
    return layouts_[layer.spec.kv_owner];
  }
  // Of the first kv head that `layer` reads, inside a page.
  int64_t offset(const LayerWeights& layer) const {
    return offsets_[layer.spec.kv_owner] +
           int64_t{layer.first_kv_head} * layout(layer).head_bytes();
  }
  int64_t page_bytes(KvFamily family) const { return page_bytes_[static_cast<int>(family)]; }
  uint8_t* pool(KvFamily family) const { return pools_[static_cast<int>(family)].data(); }
  int32_t pages(KvFamily family) const { return pages_[static_cast<int>(family)]; }
  GpuKvType type() const { return type_; }

 private:
  GpuKvType type_ = GpuKvType::kBf16;
  std::vector<GpuKvLayout> layouts_;  // by layer
  std::vector<int64_t> offsets_;      // by layer, owners only
  std::array<int64_t, kKvFamilies> page_bytes_ = {};
  std::array<int32_t, kKvFamilies> pages_ = {};
  std::array<DeviceBuffer, kKvFamilies> pools_;
};

}  // namespace lapidary
