#include "kernels/sampling/internal/row_kernels.inc.h"

namespace lapidary {
namespace {

struct Vector2x256 {
  struct Float {
    __m256 a, b;
  };
  struct Sum {
    __m256d v[4];
  };
#define OP [[gnu::always_inline]] static inline
  OP Float Set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  OP Float Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  OP void Store(float* p, Float v) {
    _mm256_store_ps(p, v.a);
    _mm256_store_ps(p + 8, v.b);
  }
  OP Float Max(Float x, Float y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  OP Float Mul(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  OP Float Sub(Float x, Float y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  OP Float Fma(Float x, Float y, Float z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  OP __m256 Round1(__m256 v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  OP Float Round(Float v) { return {Round1(v.a), Round1(v.b)}; }
  OP __m256 Times1(__m256 p, __m256 n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  }
  OP Float TimesPowerOfTwo(Float p, Float n) { return {Times1(p.a, n.a), Times1(p.b, n.b)}; }
  OP Float ZeroWhereBelow(Float v, Float x, Float limit) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.a, limit.a, _CMP_LT_OQ), v.a),
            _mm256_andnot_ps(_mm256_cmp_ps(x.b, limit.b, _CMP_LT_OQ), v.b)};
  }
  OP uint32_t BelowMask(Float x, Float y) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)) |
                                 _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)) << 8);
  }
  OP uint64_t Above64(const float* p, float threshold) {
    const __m256 limit = _mm256_set1_ps(threshold);
    __m256 v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(p + i * 8);
    __m256 any = _mm256_cmp_ps(v[0], limit, _CMP_GT_OQ);
    for (int i = 1; i < 8; ++i) any = _mm256_or_ps(any, _mm256_cmp_ps(v[i], limit, _CMP_GT_OQ));
    if (_mm256_movemask_ps(any) == 0) return 0;
    uint64_t mask = 0;
    for (int i = 0; i < 8; ++i) {
      const int bits = _mm256_movemask_ps(_mm256_cmp_ps(v[i], limit, _CMP_GT_OQ));
      mask |= static_cast<uint64_t>(bits) << (i * 8);
    }
    return mask;
  }
  OP Sum ZeroSum() {
    const __m256d zero = _mm256_setzero_pd();
    return {{zero, zero, zero, zero}};
  }
  OP Sum AddUnless(Sum sum, Float v, uint32_t skip) {
    if (skip != 0 && skip != 0xffff0000u) {  // lanes to be left out: zero them
      alignas(32) float lanes[16];
      Store(lanes, v);
      for (int i = 0; i < 16; ++i) lanes[i] = skip >> i & 1 ? 0.0f : lanes[i];
      v = Load(lanes);
    }
    sum.v[0] = _mm256_add_pd(sum.v[0], _mm256_cvtps_pd(_mm256_castps256_ps128(v.a)));
    sum.v[1] = _mm256_add_pd(sum.v[1], _mm256_cvtps_pd(_mm256_extractf128_ps(v.a, 1)));
    sum.v[2] = _mm256_add_pd(sum.v[2], _mm256_cvtps_pd(_mm256_castps256_ps128(v.b)));
    sum.v[3] = _mm256_add_pd(sum.v[3], _mm256_cvtps_pd(_mm256_extractf128_ps(v.b, 1)));
    return sum;
  }
  OP void StoreSum(double* p, Sum sum) {
    for (int i = 0; i < 4; ++i) _mm256_store_pd(p + i * 4, sum.v[i]);
  }
#undef OP
};

}  // namespace

constinit const RowKernels kRowKernelsAvx2 = Make<Vector2x256>();

}  // namespace lapidary
