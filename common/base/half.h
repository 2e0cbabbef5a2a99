// bf16 and fp16 as bit patterns, with exact conversions that need no special hardware.
#pragma once
#include <bit>
#include <cstdint>

namespace lapidary {

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t ToBf16(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline float FromBf16(uint16_t v) { return std::bit_cast<float>(uint32_t{v} << 16); }
// The nearest bf16 value, as fp32.
inline float RoundToBf16(float v) { return FromBf16(ToBf16(v)); }

inline float FromFp16(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float v = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | sign);
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
// Round to nearest, ties to even; overflow becomes infinity.
inline uint16_t ToFp16(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  const uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000u) {  // subnormal: add 0.5, whose unit in the last place is 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign |
                               ((magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000u) >> 13));
}

}  // namespace lapidary
