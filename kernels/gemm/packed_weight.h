// Packed weights: how a matrix lies in memory so that one linear read feeds the tile kernels.
//
// 32 output columns in the SIMD lanes make a panel; a panel is its K blocks one after the other,
// with scales in the stream. N and K of any size: the last panel and the last block are padded so
// that the padding adds exactly nothing.
//
//   quantised block: [32 x fp16 scale] [32 x fp16 min, *Min only] [codes] [fifth bits, kQ5* only]
//   8-bit codes:     [k/4][32 columns][4 k]           one 64-byte vector = 16 columns x 4 k
//   4-bit codes:     [k/8][32 columns][4 k]           low nibble: first 4 k, high nibble: next 4 k
//   fifth bits:      [k/4][32 columns][4 k], one bit each
//   bf16:            [k/2][32 columns][2 k]           serves vdpbf16ps and, by shift, fp32 FMA
//   fp32:            [k][32 columns]
#pragma once
#include <cstdint>

#include "kernels/huge_buffer.h"

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
  bool has_min;     // a min per block beside the scale
};
const WeightFormatInfo& Info(WeightFormat format);
inline constexpr int kWeightFormats = 8;

inline bool IsQuantized(WeightFormat format) {
  return format != WeightFormat::kBf16 && format != WeightFormat::kFp32;
}

// A packed matrix of n output columns over k inputs: y[r, :] = x[r, :k] * W^T, W [n, k].
struct PackedWeight {
  PackedWeight() = default;
  // All zeros. data.data() is null when there is no memory (n * k in the hundreds of GB): check it.
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

// The output_scale for a matrix whose largest |scale| or |min| is max_scale: stored scales keep
// fp16's full 11 bits over 28 binades below the largest, and cannot overflow. Set it before
// packing.
float ChooseOutputScale(float max_scale);

// Writes row `column` of W (k values) into its panel: float formats. Thread-safe for distinct
// panels; rows of one panel must be written by one thread. Writing a row again replaces it.
void PackFloatRow(PackedWeight& w, int64_t column, const float* values);
// The same from quantised codes (model/checkpoint.h, DecodeBlocks): [k] codes, a scale and
// (has_min) a min per block of k. What codes hold beyond k is not read. Scales are rounded to fp16:
// exact for Q8_0, Q4_0 and Q5_0, 2^-12 relative for the K formats, whose scales are products.
void PackQuantizedRow(PackedWeight& w, int64_t column, const uint8_t* codes, const float* scales,
                      const float* mins);

// out[0, k) = row `column` of W as fp32: the embedding gather reads the head's panels.
void UnpackRow(const PackedWeight& w, int64_t column, float* out);

}  // namespace lapidary
