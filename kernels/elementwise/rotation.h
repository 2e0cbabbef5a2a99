// Sine and cosine of a rotation's angle in fp32, the same bits on host and device: every operation
// is written and rounds once, nothing is left for a compiler to fuse.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace lapidary {

struct SinCos {
  float sine, cosine;
};

// |angle| <= 2^23; absolute error below 2^-23.
//
// angle = n pi/2 + r + low, |r| <= pi/4 and a bit; pi/2 in three parts of 24 bits. The first guess
// of n errs by its rounding, up to 1 at 2^23, so it is corrected by what it leaves. n has 23 bits:
// the first fma of `r` is exact, since its result, below 2, is a multiple of 2^-23 (and near pi/2
// its operands are within a factor of two). The second rounds, by 2^-25 at most; what it drops is
// kept in `low` together with the third part. Polynomials on [-pi/4, pi/4]: below 2^-26
// (coefficients: Cephes sinf, cosf). What remains are the roundings of the last two operations.
LAPIDARY_HOST_DEVICE SinCos SinCosOfAngle(float angle) {
  constexpr float kPart1 = 1.57079637f, kPart2 = -4.37113883e-8f, kPart3 = -1.71512451e-15f;
  constexpr float kInverse = 0.636619747f;
  float n = rintf(angle * kInverse);
  n += rintf(fmaf(-n, kPart2, fmaf(-n, kPart1, angle)) * kInverse);
  const float first = fmaf(-n, kPart1, angle);
  const float r = fmaf(-n, kPart2, first);
  const float low = fmaf(-n, kPart3, fmaf(-n, kPart2, first - r));
  const float z = r * r;
  float p = fmaf(-1.95152959e-4f, z, 8.33216087e-3f);
  p = fmaf(p, z, -1.66666546e-1f);
  const float sine = r + fmaf(p * z, r, low);
  float q = fmaf(2.44331571e-5f, z, -1.38873162e-3f);
  q = fmaf(q, z, 4.16666456e-2f);
  const float cosine = fmaf(-0.5f, z, 1.0f) + fmaf(q * z, z, -r * low);
  // Odd quadrants swap the two; bit 1 of n negates the sine, bit 1 of n + 1 the cosine.
  const auto quadrant = static_cast<int32_t>(n);
  const bool odd = (quadrant & 1) != 0;
  SinCos result;
  result.sine = odd ? cosine : sine;
  result.cosine = odd ? sine : cosine;
  if ((quadrant & 2) != 0) result.sine = -result.sine;
  if (((quadrant + 1) & 2) != 0) result.cosine = -result.cosine;
  return result;
}

}  // namespace lapidary
