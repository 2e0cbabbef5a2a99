#include "kernels/sampling/internal/row_kernels.inc.h"

namespace lapidary {
namespace {

struct Vector512 {
  using Float = __m512;
  struct Sum {
    __m512d v[2];
  };
#define OP [[gnu::always_inline]] static inline
  OP Float Set(float v) { return _mm512_set1_ps(v); }
  OP Float Load(const float* p) { return _mm512_loadu_ps(p); }
  OP void Store(float* p, Float v) { _mm512_store_ps(p, v); }
  OP Float Max(Float x, Float y) { return _mm512_max_ps(x, y); }
  OP Float Mul(Float x, Float y) { return _mm512_mul_ps(x, y); }
  OP Float Sub(Float x, Float y) { return _mm512_sub_ps(x, y); }
  OP Float Fma(Float x, Float y, Float z) { return _mm512_fmadd_ps(x, y, z); }
  OP Float Round(Float v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  OP Float TimesPowerOfTwo(Float p, Float n) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  }
  OP Float ZeroWhereBelow(Float v, Float x, Float limit) {
    return _mm512_maskz_mov_ps(~_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), v);
  }
  OP uint32_t BelowMask(Float x, Float y) { return _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ); }
  OP uint64_t Above64(const float* p, float threshold) {
    const __m512 limit = _mm512_set1_ps(threshold);
    uint64_t mask = 0;
    for (int i = 0; i < 4; ++i) {
      const uint64_t bits = _mm512_cmp_ps_mask(_mm512_loadu_ps(p + i * 16), limit, _CMP_GT_OQ);
      mask |= bits << (i * 16);
    }
    return mask;
  }
  OP Sum ZeroSum() { return {{_mm512_setzero_pd(), _mm512_setzero_pd()}}; }
  OP Sum AddUnless(Sum sum, Float v, uint32_t skip) {
    v = _mm512_maskz_mov_ps(static_cast<__mmask16>(~skip), v);
    sum.v[0] = _mm512_add_pd(sum.v[0], _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
    sum.v[1] = _mm512_add_pd(sum.v[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    return sum;
  }
  OP void StoreSum(double* p, Sum sum) {
    _mm512_store_pd(p, sum.v[0]);
    _mm512_store_pd(p + 8, sum.v[1]);
  }
#undef OP
};

}  // namespace

constinit const RowKernels kRowKernelsAvx512 = Make<Vector512>();

}  // namespace lapidary
