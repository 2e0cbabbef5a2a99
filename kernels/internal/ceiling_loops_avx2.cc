#include <immintrin.h>

#include "kernels/internal/ceiling_loops.h"

namespace lapidary {

void LoopMaddAvx2() {
  const __m256i u = _mm256_set1_epi8(3), v = _mm256_set1_epi8(-2);
  const __m256i ones = _mm256_set1_epi16(1);
  auto Step = [ones](__m256i a, __m256i x, __m256i y) {
    asm volatile("" : "+x"(x));  // else the product is computed once
    return _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
  };
  LAPIDARY_LOOP(__m256i, _mm256_setzero_si256())
}

void LoopFmaAvx2() {
  const __m256 u = _mm256_set1_ps(0.999f), v = _mm256_set1_ps(1e-3f);
  auto Step = [](__m256 a, __m256 x, __m256 y) { return _mm256_fmadd_ps(a, x, y); };
  LAPIDARY_LOOP(__m256, _mm256_setzero_ps())
}

void ReadAvx2(const uint8_t* p, int64_t bytes) {
  __m256i sum[8];
  for (__m256i& s : sum) s = _mm256_setzero_si256();
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 8; ++j) {
      const auto* at = reinterpret_cast<const __m256i*>(p + i + j * 32);
      sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256(at));
    }
  }
  for (__m256i& s : sum) asm volatile("" : : "x"(s));
}

}  // namespace lapidary
