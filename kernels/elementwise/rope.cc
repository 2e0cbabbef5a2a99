#include "kernels/elementwise/rope.h"

#include <immintrin.h>

#include <cmath>

#include "kernels/elementwise/vector_math.h"

namespace lapidary {
namespace {

// Sine and cosine of four doubles, |x| < 2^23: x = n pi/2 + r in two parts of pi/2 (the error of
// the reduction is below 2^-60 n), Taylor to r^13 and r^14 on |r| <= pi/4 (below 1e-12, fp32 needs
// 6e-8).
inline void SinCos4(__m256d x, __m256d& sine, __m256d& cosine) {
  const __m256d n = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(0.63661977236758134308)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(1.57079632679489655800), x);
  r = _mm256_fnmadd_pd(n, _mm256_set1_pd(6.12323399573676603587e-17), r);
  const __m256d z = _mm256_mul_pd(r, r);
  __m256d s = _mm256_set1_pd(1.0 / 6227020800.0);
  s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(-1.0 / 39916800.0));
  s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(1.0 / 362880.0));
  s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(-1.0 / 5040.0));
  s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(1.0 / 120.0));
  s = _mm256_fmadd_pd(s, z, _mm256_set1_pd(-1.0 / 6.0));
  s = _mm256_fmadd_pd(_mm256_mul_pd(s, z), r, r);
  __m256d c = _mm256_set1_pd(-1.0 / 87178291200.0);
  c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(1.0 / 479001600.0));
  c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(-1.0 / 3628800.0));
  c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(1.0 / 40320.0));
  c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(-1.0 / 720.0));
  c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(1.0 / 24.0));
  c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(-0.5));
  c = _mm256_fmadd_pd(c, z, _mm256_set1_pd(1.0));
  // Quadrant q: odd swaps the two, bit 1 of q negates the sine, bit 1 of q + 1 the cosine.
  const __m256i q = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
  const __m256d odd = _mm256_castsi256_pd(_mm256_slli_epi64(q, 63));
  const __m256i two = _mm256_set1_epi64x(2);
  const __m256d sine_sign = _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_and_si256(q, two), 62));
  const __m256d cosine_sign = _mm256_castsi256_pd(
      _mm256_slli_epi64(_mm256_and_si256(_mm256_add_epi64(q, _mm256_set1_epi64x(1)), two), 62));
  sine = _mm256_xor_pd(_mm256_blendv_pd(s, c, odd), sine_sign);
  cosine = _mm256_xor_pd(_mm256_blendv_pd(c, s, odd), cosine_sign);
}

}  // namespace

void RopeRow(int32_t position, const float* frequency, int pairs, float* cos_sin) {
  const __m128 p = _mm_set1_ps(static_cast<float>(position));
  int i = 0;
  for (; i + 4 <= pairs; i += 4) {
    __m256d sine, cosine;
    SinCos4(_mm256_cvtps_pd(_mm_mul_ps(p, _mm_loadu_ps(frequency + i))), sine, cosine);
    _mm_storeu_ps(cos_sin + i, _mm256_cvtpd_ps(cosine));
    _mm_storeu_ps(cos_sin + pairs + i, _mm256_cvtpd_ps(sine));
  }
  for (; i < pairs; ++i) {
    __m256d sine, cosine;
    SinCos4(_mm256_set1_pd(double{static_cast<float>(position) * frequency[i]}), sine, cosine);
    cos_sin[i] = static_cast<float>(_mm256_cvtsd_f64(cosine));
    cos_sin[pairs + i] = static_cast<float>(_mm256_cvtsd_f64(sine));
  }
}

void Rotate(const float* cos_sin, int pairs, int dim, float* x) {
  float* y = x + dim / 2;
  int i = 0;
  for (; i + 8 <= pairs; i += 8) {
    const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(y + i);
    const __m256 c = _mm256_loadu_ps(cos_sin + i), s = _mm256_loadu_ps(cos_sin + pairs + i);
    _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
  }
  for (; i < pairs; ++i) {
    const float a = x[i], b = y[i];
    x[i] = std::fma(a, cos_sin[i], -(b * cos_sin[pairs + i]));
    y[i] = std::fma(b, cos_sin[i], a * cos_sin[pairs + i]);
  }
}

}  // namespace lapidary
