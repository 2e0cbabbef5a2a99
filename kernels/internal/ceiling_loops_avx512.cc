#include <immintrin.h>

#include "kernels/internal/ceiling_loops.h"

namespace lapidary {

void LoopVnni() {
  const __m512i u = _mm512_set1_epi8(3), v = _mm512_set1_epi8(-2);
  auto Step = [](__m512i a, __m512i x, __m512i y) { return _mm512_dpbusd_epi32(a, x, y); };
  LAPIDARY_LOOP(__m512i, _mm512_setzero_si512())
}

void LoopMaddAvx512() {
  const __m512i u = _mm512_set1_epi8(3), v = _mm512_set1_epi8(-2);
  const __m512i ones = _mm512_set1_epi16(1);
  auto Step = [ones](__m512i a, __m512i x, __m512i y) {
    asm volatile("" : "+v"(x));  // else the product is computed once
    return _mm512_add_epi32(a, _mm512_madd_epi16(_mm512_maddubs_epi16(x, y), ones));
  };
  LAPIDARY_LOOP(__m512i, _mm512_setzero_si512())
}

void LoopFmaAvx512() {
  const __m512 u = _mm512_set1_ps(0.999f), v = _mm512_set1_ps(1e-3f);
  auto Step = [](__m512 a, __m512 x, __m512 y) { return _mm512_fmadd_ps(a, x, y); };
  LAPIDARY_LOOP(__m512, _mm512_setzero_ps())
}

void LoopDotBf16() {
  const auto u = (__m512bh)_mm512_set1_epi32(0x3c003c00);
  const auto v = u;
  auto Step = [](__m512 a, __m512bh x, __m512bh y) { return _mm512_dpbf16_ps(a, x, y); };
  LAPIDARY_LOOP(__m512, _mm512_setzero_ps())
}

}  // namespace lapidary
