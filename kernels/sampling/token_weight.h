// The arithmetic of choosing a token, for one logit at a time: the bits of worker/sampler_math.h,
// which does it for eight. Shared by kernels and tests; every operation rounds once, in one order,
// and no compiler can fuse what is written here.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"

namespace lapidary {

LAPIDARY_HOST_DEVICE uint32_t FloatBits(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
LAPIDARY_HOST_DEVICE float FloatOfBits(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// An integer with the order of the values; +0 and -0 are one, NaN is below everything.
LAPIDARY_HOST_DEVICE uint32_t TokenKey(float value) {
  if (value != value) return 0;
  const uint32_t bits = FloatBits(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
LAPIDARY_HOST_DEVICE float ValueOfKey(uint32_t key) {
  return FloatOfBits((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
constexpr uint32_t kKeyOfMinusInfinity = 0x007fffffu;  // a candidate's key is above
constexpr uint32_t kKeyOfInfinity = 0xff800000u;

// round(2^44 exp((value - max) / temperature)), to even; scale = log2(e) / temperature. 2^y is a
// polynomial of degree 7 in what is left of y after rounding it; NaN and -inf weigh nothing.
LAPIDARY_HOST_DEVICE int64_t TokenWeight(float value, float max, float scale) {
  float y = (value - max) * scale;
  y = fminf(fmaxf(y, -60.0f), 0.0f);  // NaN becomes -60
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the last bits.
  const float shifted = y + 12582912.0f;
  const float f = y - (shifted - 12582912.0f);
  float p = 1.52527338e-5f;
  p = fmaf(p, f, 1.54035304e-4f);
  p = fmaf(p, f, 1.33335581e-3f);
  p = fmaf(p, f, 9.61812911e-3f);
  p = fmaf(p, f, 5.55041087e-2f);
  p = fmaf(p, f, 2.40226507e-1f);
  p = fmaf(p, f, 6.93147181e-1f);
  p = fmaf(p, f, 1.0f);
  const uint32_t bits = FloatBits(p) + (FloatBits(shifted) << 23);
  // A float is its 24 bits times 2^(exponent - 23); a weight is that times 2^44.
  const uint32_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  const int left = static_cast<int>(bits >> 23) - 127 + (44 - 23);
  if (left >= 0) return static_cast<int64_t>(uint64_t{mantissa} << left);
  const int right = -left;
  if (right > 24) return 0;
  const uint32_t odd = mantissa >> right & 1;
  return (mantissa + (1u << (right - 1)) - 1 + odd) >> right;
}

// The smallest mass that a top-p prefix must reach, at least 1.
LAPIDARY_HOST_DEVICE int64_t TopPMass(double top_p, int64_t mass) {
  const auto target = static_cast<int64_t>(ceil(top_p * static_cast<double>(mass)));
  const int64_t most = mass > 1 ? mass : 1;
  return target < 1 ? 1 : target < most ? target : most;
}

}  // namespace lapidary
