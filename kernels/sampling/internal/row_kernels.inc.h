// The loops of row_kernels.h over a policy of 16 lanes. Included by row_kernels_*.cc alone.
//
// Sums keep 16 double lanes whatever the instruction set: element i always goes to lane i mod 16.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/sampling/internal/row_kernels.h"

namespace lapidary {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int kLanes = 16;

// The last n % 16 values, filled up with -infinity.
struct Tail {
  alignas(64) float values[kLanes];
  Tail(const float* logits, int64_t n) {
    const int64_t whole = n / kLanes * kLanes;
    for (int i = 0; i < kLanes; ++i) values[i] = whole + i < n ? logits[whole + i] : kMinusInfinity;
  }
};

template <class V>
int64_t CollectAbove(const float* logits, int64_t begin, int64_t end, float threshold,
                     float* values, int64_t* indices, int64_t* count, int64_t full) {
  int64_t found = *count, i = begin;
  for (; i + 64 <= end && found < full; i += 64) {
    uint64_t mask = V::Above64(logits + i, threshold);
    while (mask != 0) {  // rare once the threshold has risen
      const int64_t at = i + __builtin_ctzll(mask);
      values[found] = logits[at];
      indices[found++] = at;
      mask &= mask - 1;
    }
  }
  for (; i < end && i + 64 > end && found < full; ++i) {
    if (logits[i] > threshold) {
      values[found] = logits[i];
      indices[found++] = i;
    }
  }
  *count = found;
  return i;
}

template <class V>
float Max(const float* logits, int64_t n) {
  auto best = V::Set(kMinusInfinity);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = V::Max(V::Load(logits + i), best);
  const Tail tail(logits, n);
  best = V::Max(V::Load(tail.values), best);
  alignas(64) float lanes[kLanes];
  V::Store(lanes, best);
  float max = kMinusInfinity;
  for (float v : lanes) max = v > max ? v : max;
  return max;
}

// Two passes: the maximum of each stretch, then where the first largest one stands in it.
template <class V>
int64_t ArgMax(const float* logits, int64_t n) {
  constexpr int64_t kStretch = 4096;
  float best = kMinusInfinity;
  int64_t where = -1;
  for (int64_t i = 0; i < n; i += kStretch) {
    const float max = Max<V>(logits + i, n - i < kStretch ? n - i : kStretch);
    if (max > best) {
      best = max;
      where = i;
    }
  }
  if (where < 0) return -1;
  while (logits[where] != best) ++where;
  return where;
}

// exp of x <= 0: 2^n * e^r with |r| <= ln(2) / 2, a polynomial of degree 6 in r. 0 below -87, where
// fp32 would become subnormal. NaN stays NaN.
template <class V>
[[gnu::always_inline]] inline typename V::Float Exp(typename V::Float x) {
  const auto clamped = V::Max(V::Set(-87.0f), x);  // the second operand, if either is NaN
  const auto n = V::Round(V::Mul(clamped, V::Set(1.44269504f)));
  auto r = V::Fma(n, V::Set(-0.693359375f), clamped);
  r = V::Fma(n, V::Set(2.12194440e-4f), r);
  auto p = V::Fma(V::Set(1.0f / 720), r, V::Set(1.0f / 120));
  p = V::Fma(p, r, V::Set(1.0f / 24));
  p = V::Fma(p, r, V::Set(1.0f / 6));
  p = V::Fma(p, r, V::Set(0.5f));
  p = V::Fma(p, r, V::Set(1.0f));
  p = V::Fma(p, r, V::Set(1.0f));
  return V::ZeroWhereBelow(V::TimesPowerOfTwo(p, n), x, V::Set(-87.0f));
}

template <class V>
double SumExp(const float* logits, int64_t n, float threshold, float max, float inverse_temperature,
              int64_t* count) {
  typename V::Sum sum = V::ZeroSum();
  int64_t above = 0;
  auto add = [&](const float* at, int valid) {
    const auto x = V::Load(at);
    const uint32_t below = V::BelowMask(x, V::Set(threshold)) | ~((1u << valid) - 1);
    const auto e = Exp<V>(V::Mul(V::Sub(x, V::Set(max)), V::Set(inverse_temperature)));
    sum = V::AddUnless(sum, e, below);
    above += __builtin_popcount(~below & 0xffffu);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add(logits + i, kLanes);
  if (i < n) {
    const Tail tail(logits, n);
    add(tail.values, static_cast<int>(n - i));
  }
  alignas(64) double lanes[kLanes];
  V::StoreSum(lanes, sum);
  double total = 0;
  for (double v : lanes) total += v;
  *count = above;
  return total;
}

template <class V>
constexpr RowKernels Make() {
  return {CollectAbove<V>, ArgMax<V>, Max<V>, SumExp<V>};
}

}  // namespace
}  // namespace lapidary
