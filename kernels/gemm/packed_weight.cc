#include "kernels/gemm/packed_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "common/base/half.h"

namespace lapidary {

namespace {

constexpr int kScaleBytes = 2 * kPanelColumns;
constexpr int kStepBytes = 4 * kPanelColumns;  // 4 k of all columns, 8 bits each
constexpr int kNibbleBytes = kStepBytes * 4;   // a block of 32 k, 4 bits each
constexpr int kFifthBytes = kStepBytes / 8;    // 4 k of all columns, one bit each

// Where the parts of row `column` lie in the panel.
struct RowPlace {
  const WeightFormatInfo& info;
  uint8_t* panel;
  int64_t column;  // in the panel
};

RowPlace Place(const PackedWeight& w, int64_t column) {
  LAPIDARY_CHECK(column >= 0 && column < w.n);
  return {Info(w.format), w.data.data() + column / kPanelColumns * w.panel_bytes(),
          column % kPanelColumns};
}

bool FourBits(WeightFormat format) {
  return format == WeightFormat::kQ4 || format == WeightFormat::kQ4Min ||
         format == WeightFormat::kQ5 || format == WeightFormat::kQ5Min;
}
bool FifthBit(WeightFormat format) {
  return format == WeightFormat::kQ5 || format == WeightFormat::kQ5Min;
}

void StoreHalf(uint8_t* at, float v) {
  const uint16_t half = ToFp16(v);
  memcpy(at, &half, 2);
}
float LoadHalf(const uint8_t* at) {
  uint16_t half;
  memcpy(&half, at, 2);
  return FromFp16(half);
}

// 4 codes of one column, one a byte, to and from the nibble half and the fifth-bit plane.
void StoreNibbles(uint8_t* at, bool high, uint32_t codes) {
  uint32_t old;
  memcpy(&old, at, 4);
  old = high ? (old & 0x0f0f0f0fu) | (codes & 0x0f0f0f0fu) << 4
             : (old & 0xf0f0f0f0u) | (codes & 0x0f0f0f0fu);
  memcpy(at, &old, 4);
}
void StoreFifthBits(uint8_t* step, int64_t column, uint32_t codes) {
  const uint32_t bits = codes >> 4 & 0x01010101u;
  const uint32_t nibble = (bits | bits >> 7 | bits >> 14 | bits >> 21) & 15;
  const int shift = static_cast<int>(column % 2) * 4;
  step[column / 2] = static_cast<uint8_t>((step[column / 2] & ~(15 << shift)) | nibble << shift);
}
uint32_t LoadFifthBits(const uint8_t* step, int64_t column) {
  const uint32_t nibble = step[column / 2] >> (column % 2 * 4) & 15;
  return (nibble | nibble << 7 | nibble << 14 | nibble << 21) & 0x01010101u;
}

}  // namespace

const WeightFormatInfo& Info(WeightFormat format) {
  static constexpr WeightFormatInfo kInfo[kWeightFormats] = {
      {"q8", 32, 64 + 1024, 128, false},     {"q8b16", 16, 64 + 512, 128, false},
      {"q4", 32, 64 + 512, 8, false},        {"q4min", 32, 128 + 512, 0, true},
      {"q5", 32, 64 + 512 + 128, 16, false}, {"q5min", 32, 128 + 512 + 128, 0, true},
      {"bf16", 32, 2048, 0, false},          {"fp32", 32, 4096, 0, false},
  };
  return kInfo[static_cast<int>(format)];
}

PackedWeight::PackedWeight(WeightFormat format, int64_t n, int64_t k)
    : format(format), n(n), k(k), data(static_cast<size_t>(bytes())) {
  LAPIDARY_CHECK(n >= 0 && k >= 0);
}

float ChooseOutputScale(float max_scale) {
  max_scale = std::fabs(max_scale);
  if (!(max_scale > 0) || !std::isfinite(max_scale)) return 1.0f;
  // The largest lands in [2^14, 2^15): fp16 ends at 2^16, its normals begin at 2^-14.
  const int exponent = std::max(std::ilogb(max_scale) - 14, -120);
  return std::ldexp(1.0f, exponent);
}

void PackFloatRow(PackedWeight& w, int64_t column, const float* values) {
  const RowPlace row = Place(w, column);
  if (w.format == WeightFormat::kFp32) {
    auto* out = reinterpret_cast<float*>(row.panel) + row.column;
    for (int64_t i = 0; i < w.k; ++i) out[i * kPanelColumns] = values[i];
    return;
  }
  LAPIDARY_CHECK(w.format == WeightFormat::kBf16);
  auto* out = reinterpret_cast<uint16_t*>(row.panel) + row.column * 2;
  for (int64_t i = 0; i < w.k; ++i) {
    out[i / 2 * (2 * kPanelColumns) + i % 2] = ToBf16(values[i]);
  }
}

void PackQuantizedRow(PackedWeight& w, int64_t column, const uint8_t* codes, const float* scales,
                      const float* mins) {
  LAPIDARY_CHECK(IsQuantized(w.format));
  const RowPlace row = Place(w, column);
  const float inverse = 1.0f / w.output_scale;  // powers of two: exact
  const int steps = row.info.block_k / 4;
  const bool four_bits = FourBits(w.format), fifth_bit = FifthBit(w.format);
  for (int64_t b = 0; b < w.blocks(); ++b) {
    uint8_t* block = row.panel + b * row.info.block_bytes;
    const bool real = b * row.info.block_k < w.k;  // kQ8Block16 may end with a block of padding
    StoreHalf(block + row.column * 2, real ? scales[b] * inverse : 0.0f);
    uint8_t* out = block + kScaleBytes;
    if (row.info.has_min) {
      StoreHalf(out + row.column * 2, mins[b] * inverse);
      out += kScaleBytes;
    }
    for (int s = 0; s < steps; ++s) {
      const int64_t at = b * row.info.block_k + s * 4;
      uint32_t four = static_cast<uint32_t>(row.info.zero_point) * 0x01010101u;
      if (at < w.k) memcpy(&four, codes + at, static_cast<size_t>(std::min<int64_t>(4, w.k - at)));
      if (!four_bits) {
        memcpy(out + s * kStepBytes + row.column * 4, &four, 4);
        continue;
      }
      StoreNibbles(out + s / 2 * kStepBytes + row.column * 4, s % 2 == 1, four);
      if (fifth_bit) StoreFifthBits(out + kNibbleBytes + s * kFifthBytes, row.column, four);
    }
  }
}

void UnpackRow(const PackedWeight& w, int64_t column, float* out) {
  const RowPlace row = Place(w, column);
  if (w.format == WeightFormat::kFp32) {
    const auto* in = reinterpret_cast<const float*>(row.panel) + row.column;
    for (int64_t i = 0; i < w.k; ++i) out[i] = in[i * kPanelColumns];
    return;
  }
  if (w.format == WeightFormat::kBf16) {
    const auto* in = reinterpret_cast<const uint16_t*>(row.panel) + row.column * 2;
    for (int64_t i = 0; i < w.k; ++i) out[i] = FromBf16(in[i / 2 * (2 * kPanelColumns) + i % 2]);
    return;
  }
  const bool four_bits = FourBits(w.format), fifth_bit = FifthBit(w.format);
  const int steps = row.info.block_k / 4;
  for (int64_t b = 0; b < w.blocks(); ++b) {
    const uint8_t* block = row.panel + b * row.info.block_bytes;
    const float scale = LoadHalf(block + row.column * 2) * w.output_scale;
    const float min =
        row.info.has_min ? LoadHalf(block + kScaleBytes + row.column * 2) * w.output_scale : 0.0f;
    const uint8_t* in = block + (row.info.has_min ? 2 : 1) * kScaleBytes;
    for (int s = 0; s < steps; ++s) {
      const int64_t at = b * row.info.block_k + s * 4;
      if (at >= w.k) return;
      uint32_t four;
      memcpy(&four, in + (four_bits ? s / 2 : s) * kStepBytes + row.column * 4, 4);
      if (four_bits) four = four >> (s % 2 * 4) & 0x0f0f0f0fu;
      if (fifth_bit) {
        four |= LoadFifthBits(in + kNibbleBytes + s * kFifthBytes, row.column) << 4;
      }
      const int count = static_cast<int>(std::min<int64_t>(4, w.k - at));
      for (int i = 0; i < count; ++i) {
        const int code = static_cast<int>(four >> (8 * i) & 255) - row.info.zero_point;
        out[at + i] = scale * static_cast<float>(code) - min;
      }
    }
  }
}

}  // namespace lapidary
