// The quantised formats as AVX-512 reads them. Included by the tile_*.cc alone (see tile.h about
// inline functions).
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/internal/tile.h"

namespace lapidary {
namespace {

[[gnu::always_inline]] inline __m512i Load(const void* p) { return _mm512_loadu_si512(p); }
[[gnu::always_inline]] inline __m512 LoadHalf(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// A format tells how to get 16 columns x 4 k of unsigned codes: step 0..7 of a block, half 0..1;
// and of narrow ones, the same widened: without a min the zero point moves to 128.
template <bool kHasMin>
struct CodesQ8 {
  static constexpr int kSteps = 8, kCodes = kHasMin ? 128 : 64, kBytes = kCodes + 1024;
  static constexpr int kZeroPoint = kHasMin ? 0 : 128;
  static constexpr bool kMin = kHasMin;
  static constexpr Start kStart = kHasMin ? Start::kConstant : Start::kInScale;
  [[gnu::always_inline]] static __m512i Get(const uint8_t* block, int step, int half) {
    return Load(block + kCodes + step * 128 + half * 64);
  }
};
struct CodesQ8Block16 : CodesQ8<false> {
  static constexpr int kSteps = 4, kBytes = 64 + 512;
};
template <bool kHasMin, bool kGfni>
struct CodesQ4 {
  static constexpr int kSteps = 8, kCodes = kHasMin ? 128 : 64, kBytes = kCodes + 512;
  static constexpr int kZeroPoint = 8;
  static constexpr bool kMin = kHasMin;
  static constexpr Start kStart = kHasMin ? Start::kConstant : Start::kPlane;
  // The nibbles, under kHigh: bits of the upper half that are set beside them.
  template <int kHigh>
  [[gnu::always_inline]] static __m512i Nibbles(const uint8_t* block, int step, int half) {
    const __m512i v = Load(block + kCodes + step / 2 * 128 + half * 64);
    const __m512i high = _mm512_set1_epi8(static_cast<char>(kHigh));
    if (step % 2 == 0) {
      return _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi8(15)), high);
    }
#ifdef __GFNI__
    // Shift right by 4 within bytes, as a bit-matrix product: one instruction for two.
    if constexpr (kGfni) {
      return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(0x1020408000000000), kHigh);
    }
#endif
    return _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)), high);
  }
  [[gnu::always_inline]] static __m512i Get(const uint8_t* block, int step, int half) {
    return Nibbles<0>(block, step, half);
  }
  [[gnu::always_inline]] static __m512i Widened(const uint8_t* block, int step, int half) {
    const __m512i codes = Get(block, step, half);
    return kHasMin ? codes : _mm512_add_epi8(codes, _mm512_set1_epi8(128 - kZeroPoint));
  }
};
template <bool kHasMin, bool kGfni>
struct CodesQ5 {
  using Q4 = CodesQ4<kHasMin, kGfni>;
  static constexpr int kSteps = 8, kCodes = Q4::kCodes, kBytes = kCodes + 512 + 128;
  static constexpr int kZeroPoint = 16;
  static constexpr bool kMin = kHasMin;
  static constexpr Start kStart = Q4::kStart;
  template <int kShift>  // added to the codes: a multiple of 16
  [[gnu::always_inline]] static __m512i Shifted(const uint8_t* block, int step, int half) {
    const __m512i low = Q4::template Nibbles<kShift>(block, step, half);
    const uint8_t* bits = block + kCodes + 512 + step * 16 + half * 8;
    const __mmask64 fifth = *reinterpret_cast<const __mmask64*>(bits);
    return _mm512_mask_add_epi8(low, fifth, low, _mm512_set1_epi8(16));
  }
  [[gnu::always_inline]] static __m512i Get(const uint8_t* block, int step, int half) {
    return Shifted<0>(block, step, half);
  }
  [[gnu::always_inline]] static __m512i Widened(const uint8_t* block, int step, int half) {
    return Shifted < kHasMin ? 0 : 128 - kZeroPoint > (block, step, half);
  }
};

}  // namespace
}  // namespace lapidary
