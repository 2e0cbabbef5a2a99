#include "worker/sampler_math.h"

#include <immintrin.h>

#include <algorithm>

namespace lapidary {

namespace {

// 2^y for y in [-60, 0], relative error below 2^-22; exactly 1 at 0.
inline __m256 Exp2(__m256 y) {
  const __m256 whole = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(y, whole);  // [-0.5, 0.5]
  // Taylor in f ln 2; the first term left out is below 6e-9.
  __m256 p = _mm256_set1_ps(1.52527338e-5f);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.54035304e-4f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.33335581e-3f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.61812911e-3f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.55041087e-2f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.40226507e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.93147181e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

// Four weights from four values of 2^y: scaled by 2^44 and rounded, through the bits of 2^52 + w.
inline __m256i ToWeights(__m128 power) {
  const __m256d magic = _mm256_set1_pd(0x1p52);
  const __m256d scaled =
      _mm256_mul_pd(_mm256_cvtps_pd(power), _mm256_set1_pd(static_cast<double>(kWeightOne)));
  return _mm256_sub_epi64(_mm256_castpd_si256(_mm256_add_pd(scaled, magic)),
                          _mm256_castpd_si256(magic));
}

struct EightWeights {
  __m256i low, high;
};

inline EightWeights WeightsOf(__m256 values, __m256 max, __m256 scale) {
  __m256 y = _mm256_mul_ps(_mm256_sub_ps(values, max), scale);
  // In this order a NaN becomes -60, which weighs nothing.
  y = _mm256_max_ps(y, _mm256_set1_ps(-60.0f));
  y = _mm256_min_ps(y, _mm256_setzero_ps());
  const __m256 power = Exp2(y);
  return {ToWeights(_mm256_castps256_ps128(power)), ToWeights(_mm256_extractf128_ps(power, 1))};
}

}  // namespace

void ComputeWeights(const float* values, int64_t count, Softmax softmax, int64_t* weights) {
  const __m256 max = _mm256_set1_ps(softmax.max), scale = _mm256_set1_ps(softmax.scale);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const EightWeights w = WeightsOf(_mm256_loadu_ps(values + i), max, scale);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i), w.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i + 4), w.high);
  }
  if (i == count) return;
  float rest[8] = {};
  int64_t rest_weights[8];
  std::copy(values + i, values + count, rest);
  const EightWeights w = WeightsOf(_mm256_loadu_ps(rest), max, scale);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest_weights), w.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest_weights + 4), w.high);
  std::copy(rest_weights, rest_weights + (count - i), weights + i);
}

void ComputeOrderKeys(const float* values, int64_t count, uint32_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = OrderKey(values[i]);
}

KeptMass MassAbove(const float* values, int64_t count, Softmax softmax, float threshold,
                   int64_t min_weight) {
  const __m256 max = _mm256_set1_ps(softmax.max), scale = _mm256_set1_ps(softmax.scale);
  const __m256 limit = _mm256_set1_ps(threshold);
  const __m256i least = _mm256_set1_epi64x(min_weight - 1);
  __m256i sums = _mm256_setzero_si256();
  KeptMass kept;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 v = _mm256_loadu_ps(values + i);
    const EightWeights w = WeightsOf(v, max, scale);
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(v, limit, _CMP_GT_OQ));
    const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(above));
    const __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(above, 1));
    const __m256i low_heavy = _mm256_and_si256(low, _mm256_cmpgt_epi64(w.low, least));
    const __m256i high_heavy = _mm256_and_si256(high, _mm256_cmpgt_epi64(w.high, least));
    sums = _mm256_add_epi64(sums, _mm256_add_epi64(_mm256_and_si256(w.low, low_heavy),
                                                   _mm256_and_si256(w.high, high_heavy)));
    const int equal = _mm256_movemask_ps(_mm256_cmp_ps(v, limit, _CMP_EQ_OQ));
    kept.equal += __builtin_popcount(static_cast<unsigned>(equal));
  }
  int64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sums);
  kept.above = lanes[0] + lanes[1] + lanes[2] + lanes[3];
  for (; i < count; ++i) {
    const int64_t w = WeightOf(values[i], softmax);
    if (values[i] > threshold && w >= min_weight) kept.above += w;
    kept.equal += values[i] == threshold;
  }
  return kept;
}

void CollectBetween(const float* values, int64_t count, float low, float high,
                    std::vector<float>* found) {
  const __m256 from = _mm256_set1_ps(low), to = _mm256_set1_ps(high);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 v = _mm256_loadu_ps(values + i);
    const __m256 inside =
        _mm256_and_ps(_mm256_cmp_ps(v, from, _CMP_GE_OQ), _mm256_cmp_ps(v, to, _CMP_LE_OQ));
    for (auto mask = static_cast<unsigned>(_mm256_movemask_ps(inside)); mask != 0;
         mask &= mask - 1) {
      found->push_back(values[i + __builtin_ctz(mask)]);
    }
  }
  for (; i < count; ++i) {
    if (values[i] >= low && values[i] <= high) found->push_back(values[i]);
  }
}

int64_t WeightOf(float value, Softmax softmax) {
  int64_t weight = 0;
  ComputeWeights(&value, 1, softmax, &weight);
  return weight;
}

}  // namespace lapidary
