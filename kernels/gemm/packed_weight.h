// Packed weights: how a matrix lies in memory so that one linear read feeds the tile kernels.
//
// 32 output columns in the SIMD lanes make a panel; a panel is its K blocks one after the other,
// with scales in the stream. N and K of any size: the last panel and the last block are padded with
// zeros.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace lapidary {

inline constexpr int kPanelColumns = 32;
inline constexpr int kBlockK = 32;

enum class WeightFormat : uint8_t {
  kQ8,         // Q8_0: s * (u - 128)
  kQ8Block16,  // Q6_K: s * (u - 128), one scale per 16 k
  kQ4,         // Q4_0: s * (u - 8)
  kQ4Min,      // Q4_K: s * u - min
  kQ5,         // Q5_0: s * (u - 16), a fifth bit in its own plane
  kQ5Min,      // Q5_K: s * u - min
  kBf16,
  kFp32,
};

struct WeightFormatInfo {
  const char* name;
  int block_k;      // k per scale
  int block_bytes;  // one block of one panel (32 columns)
  int zero_point;   // subtracted through the activation sums
};
const WeightFormatInfo& Info(WeightFormat format);

// Zeroed, 64-byte aligned memory on huge pages. data() is null when the system has no memory left.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  explicit HugeBuffer(size_t bytes);
  uint8_t* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Unmap {
    size_t bytes = 0;
    void operator()(uint8_t* p) const;
  };
  std::unique_ptr<uint8_t, Unmap> data_;
  size_t bytes_ = 0;
};

// A packed matrix of n output columns over k inputs: y[r, :] = x[r, :k] * W^T, W [n, k].
struct PackedWeight {
  PackedWeight() = default;
  PackedWeight(WeightFormat format, int64_t n, int64_t k);

  int64_t panels() const { return (n + kPanelColumns - 1) / kPanelColumns; }
  int64_t padded_k() const { return (k + kBlockK - 1) / kBlockK * kBlockK; }
  int64_t blocks() const { return padded_k() / Info(format).block_k; }
  int64_t panel_bytes() const { return blocks() * Info(format).block_bytes; }
  int64_t bytes() const { return panels() * panel_bytes(); }

  WeightFormat format = WeightFormat::kFp32;
  int64_t n = 0, k = 0;
  float output_scale =
      1.0f;  // power of two applied to the output (block scales below fp16's normals)
  HugeBuffer data;
};

// Writes row `column` of W (k values) into its panel: float formats. Thread-safe for distinct
// panels; rows of one panel must be written by one thread.
void PackFloatRow(PackedWeight& w, int64_t column, const float* values);
// The same from quantised codes, [padded_k] codes, scales and mins per block (model/checkpoint.h,
// DecodeBlocks). Values beyond k are padded with codes equal to the zero point.
void PackQuantizedRow(PackedWeight& w, int64_t column, const uint8_t* codes, const float* scales,
                      const float* mins);

// out[0, k) = row `column` of W as fp32: the embedding gather reads the head's panels.
void UnpackRow(const PackedWeight& w, int64_t column, float* out);

}  // namespace lapidary
