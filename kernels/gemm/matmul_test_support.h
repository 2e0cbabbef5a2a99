// A random weight of any format with its exact values, and the product in double: plainly right.
#pragma once
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "common/base/half.h"
#include "kernels/gemm/matmul.h"

namespace lapidary {

inline std::vector<float> Gaussian(int64_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

inline int CodeLevels(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ4:
    case WeightFormat::kQ4Min:
      return 16;
    case WeightFormat::kQ5:
    case WeightFormat::kQ5Min:
      return 32;
    case WeightFormat::kQ8:
    case WeightFormat::kQ8Block16:
    case WeightFormat::kBf16:
    case WeightFormat::kFp32:
      return 256;
  }
  return 0;
}

struct TestWeight {
  PackedWeight packed;
  std::vector<float> values;     // [n, k], exactly what the panel means
  std::vector<float> magnitude;  // [n, k], |scale * code| + |min|: what rounding errors scale with
};

// Scales are around `scale`, a third of them negative (Q4_0's can be); codes take every value.
inline TestWeight MakeWeight(WeightFormat format, int64_t n, int64_t k, uint32_t seed,
                             float scale = 0.001f) {
  TestWeight w{PackedWeight(format, n, k), {}, {}};
  std::mt19937 rng(seed);
  w.values.resize(n * k);
  w.magnitude.resize(n * k);
  if (!IsQuantized(format)) {
    w.values = Gaussian(n * k, seed);
    for (int64_t c = 0; c < n; ++c) PackFloatRow(w.packed, c, &w.values[c * k]);
    for (int64_t i = 0; i < n * k; ++i) {
      if (format == WeightFormat::kBf16) w.values[i] = RoundToBf16(w.values[i]);
      w.magnitude[i] = std::fabs(w.values[i]);
    }
    return w;
  }
  const WeightFormatInfo& info = Info(format);
  const int64_t blocks = w.packed.blocks();
  w.packed.output_scale = ChooseOutputScale(16 * scale);
  std::vector<uint8_t> codes(k);
  std::vector<float> scales(blocks), mins(blocks);
  std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
  auto stored = [&](float v) {  // as the panel can hold it
    return FromFp16(ToFp16(v / w.packed.output_scale)) * w.packed.output_scale;
  };
  for (int64_t c = 0; c < n; ++c) {
    for (uint8_t& u : codes) u = static_cast<uint8_t>(rng() % CodeLevels(format));
    for (float& s : scales) s = stored(scale * uniform(rng) * (rng() % 3 == 0 ? -1.0f : 1.0f));
    for (float& m : mins) m = stored(8 * scale * uniform(rng));
    PackQuantizedRow(w.packed, c, codes.data(), scales.data(), mins.data());
    for (int64_t i = 0; i < k; ++i) {
      const int64_t b = i / info.block_k;
      const float product = scales[b] * static_cast<float>(codes[i] - info.zero_point);
      const float min = info.has_min ? mins[b] : 0.0f;
      w.values[c * k + i] = product - min;
      w.magnitude[c * k + i] = std::fabs(product) + std::fabs(min);
    }
  }
  return w;
}

// What an arithmetic sees of x [rows, k]: int8 codes times their scale, bf16, or x itself.
inline std::vector<float> SeenByArithmetic(const std::vector<float>& x, int64_t rows, int64_t k,
                                           Arithmetic arithmetic, int block, bool round_to_bf16) {
  std::vector<float> seen = x;
  if (arithmetic == Arithmetic::kDotBf16 || round_to_bf16) {
    for (float& v : seen) v = RoundToBf16(v);
  }
  if (!IsInt8(arithmetic)) return seen;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < k; b += block) {
      float* row = &seen[r * k];
      const int64_t end = std::min(b + block, k);
      float amax = 0;
      for (int64_t i = b; i < end; ++i) amax = std::max(amax, std::fabs(row[i]));
      const float scale = std::bit_cast<float>(std::bit_cast<uint32_t>(amax / 127.0f) & ~3u);
      for (int64_t i = b; i < end; ++i) {
        row[i] = amax > 0 ? std::nearbyint(row[i] * (127.0f / amax)) * scale : 0.0f;
      }
    }
  }
  return seen;
}

inline std::vector<Arithmetic> SupportedFor(WeightFormat format) {
  std::vector<Arithmetic> found;
  for (int i = 0; i < kArithmetics; ++i) {
    const auto a = static_cast<Arithmetic>(i);
    if (Supported(a) && Fits(a, format)) found.push_back(a);
  }
  return found;
}

}  // namespace lapidary
