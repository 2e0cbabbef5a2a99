// Device code: a row as units of 8 elements, the grain of the row operations. Where the row is
// aligned a unit is one access of bf16 (16 bytes) or e4m3 (8), two of fp32; element by element
// where it is not, and at its end.
#pragma once
#include "kernels/gpu.h"

namespace lapidary {

constexpr int kUnit = 8;
constexpr int64_t kMaxWidth = int64_t{1} << 30;  // columns are 32-bit numbers

struct Unit {
  float v[kUnit];
};

// Elements [first, first + 8) of row[0, n); 0 beyond n. `aligned`: the row is, to 16 bytes.
GPU_DEVICE Unit LoadUnit(const float* row, int first, int n, bool aligned) {
  Unit u;
  if (aligned && first + kUnit <= n) {
    const float4 a = gpu::Load<float4>(row + first), b = gpu::Load<float4>(row + first + 4);
    u.v[0] = a.x, u.v[1] = a.y, u.v[2] = a.z, u.v[3] = a.w;
    u.v[4] = b.x, u.v[5] = b.y, u.v[6] = b.z, u.v[7] = b.w;
    return u;
  }
#pragma unroll
  for (int i = 0; i < kUnit; ++i) u.v[i] = first + i < n ? row[first + i] : 0.0f;
  return u;
}

GPU_DEVICE Unit Unpack(uint4 pairs) {
  Unit u;
  u.v[0] = gpu::Bf16Low(pairs.x), u.v[1] = gpu::Bf16High(pairs.x);
  u.v[2] = gpu::Bf16Low(pairs.y), u.v[3] = gpu::Bf16High(pairs.y);
  u.v[4] = gpu::Bf16Low(pairs.z), u.v[5] = gpu::Bf16High(pairs.z);
  u.v[6] = gpu::Bf16Low(pairs.w), u.v[7] = gpu::Bf16High(pairs.w);
  return u;
}

GPU_DEVICE Unit LoadUnit(const __nv_bfloat16* row, int first, int n, bool aligned) {
  if (aligned && first + kUnit <= n) return Unpack(gpu::Load<uint4>(row + first));
  Unit u;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    u.v[i] = first + i < n ? __bfloat162float(row[first + i]) : 0.0f;
  }
  return u;
}

// Writes elements [first, first + 8) of row[0, n).
GPU_DEVICE void StoreUnit(float* row, int first, int n, bool aligned, const Unit& u) {
  if (aligned && first + kUnit <= n) {
    gpu::Store(row + first, float4{u.v[0], u.v[1], u.v[2], u.v[3]});
    gpu::Store(row + first + 4, float4{u.v[4], u.v[5], u.v[6], u.v[7]});
    return;
  }
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    if (first + i < n) row[first + i] = u.v[i];
  }
}

GPU_DEVICE void StoreUnit(__nv_bfloat16* row, int first, int n, bool aligned, const Unit& u) {
  if (aligned && first + kUnit <= n) {
    gpu::Store(row + first, uint4{gpu::PackBf16(u.v[0], u.v[1]), gpu::PackBf16(u.v[2], u.v[3]),
                                  gpu::PackBf16(u.v[4], u.v[5]), gpu::PackBf16(u.v[6], u.v[7])});
    return;
  }
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    if (first + i < n) row[first + i] = __float2bfloat16_rn(u.v[i]);
  }
}

// Codes of u / scale: nearest even, at most 448. `aligned`: to 8 bytes.
GPU_DEVICE void StoreCodes(uint8_t* row, int first, int n, bool aligned, const Unit& u,
                           float scale) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = __nv_cvt_float2_to_fp8x2(float2{u.v[2 * i] / scale, u.v[2 * i + 1] / scale},
                                        __NV_SATFINITE, __NV_E4M3);
  }
  const uint2 codes{pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
  if (aligned && first + kUnit <= n) {
    gpu::Store(row + first, codes);
    return;
  }
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    const uint32_t word = i < 4 ? codes.x : codes.y;
    if (first + i < n) row[first + i] = static_cast<uint8_t>(word >> (8 * (i % 4)));
  }
}

GPU_DEVICE float SumOfSquares(const Unit& u, float sum) {
#pragma unroll
  for (int i = 0; i < kUnit; ++i) sum = fmaf(u.v[i], u.v[i], sum);
  return sum;
}
GPU_DEVICE float Largest(const Unit& u, float largest) {
#pragma unroll
  for (int i = 0; i < kUnit; ++i) largest = fmaxf(largest, fabsf(u.v[i]));
  return largest;
}

// The scale of a row of e4m3 codes. 1 where a quotient by the true one could not be formed.
GPU_DEVICE float E4m3Scale(float largest) {
  const float scale = largest / 448.0f;
  return scale >= 0x1p-126f ? scale : 1.0f;
}

}  // namespace lapidary
