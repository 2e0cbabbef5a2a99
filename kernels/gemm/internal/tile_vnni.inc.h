// The int8 tiles with vpdpbusd. Included by tile_vnni.cc and tile_vnni_gfni.cc alone.
//
// vpdpbusd wants one unsigned operand: weights keep their raw code and the zero point goes into the
// start value of the accumulator. 6 rows: 12 int32 and 12 fp32 accumulators, 2 weights, 1
// activation and constants are 32 registers. 8 dots cost 8 instructions and 2 to scale them, so 80
// % of the instruction's rate is the ceiling.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/internal/codes_avx512.inc.h"
#include "kernels/gemm/internal/prefetch.inc.h"
#include "kernels/gemm/internal/tile.h"

namespace lapidary {
namespace {

// A broadcast that stays a load: GCC would otherwise keep it in a register and spill another.
[[gnu::always_inline]] inline __m512i Broadcast32(const void* p) {
  return _mm512_set1_epi32(*static_cast<const int32_t*>(p));
}

template <int kRows, bool kStream, class Codes>
void Tile(const TileArgs& a) {
  __m512 acc[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      acc[r][h] = a.start_at_zero ? _mm512_setzero_ps() : _mm512_load_ps(a.acc + r * 32 + h * 16);
    }
  }
  constexpr int kBlock = Codes::kSteps * 4;
  const auto* x = static_cast<const int8_t*>(a.x);
  const int32_t* start = a.start;
  const BlockScale* scale = a.scale;
  const uint8_t* w = a.w;
  const uint8_t* prefetch = a.prefetch;
  for (int64_t b = 0; b < a.blocks; ++b) {
    __m512i dot[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      dot[r][0] = dot[r][1] = Codes::kStart == Start::kInScale ? Broadcast32(&scale[r].start)
                              : Codes::kStart == Start::kPlane ? Broadcast32(&start[r])
                                                               : _mm512_set1_epi32(kMagicBits);
    }
#pragma GCC unroll 8
    for (int s = 0; s < Codes::kSteps; ++s) {
      PrefetchStep<kStream, Codes::kSteps, Codes::kBytes / 64>(prefetch, s, a.prefetch_lines);
      const __m512i w0 = Codes::Get(w, s, 0), w1 = Codes::Get(w, s, 1);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512i v = Broadcast32(x + r * kBlock + s * 4);
        dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w0, v);
        dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w1, v);
      }
    }
    const __m512 w_scale[2] = {LoadHalf(w), LoadHalf(w + 32)};
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512 x_scale = _mm512_set1_ps(scale[r].scale);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512 v = _mm512_fmadd_ps(_mm512_castsi512_ps(dot[r][h]), x_scale,
                                         _mm512_set1_ps(scale[r].minus_magic));
        acc[r][h] = _mm512_fmadd_ps(v, w_scale[h], acc[r][h]);
      }
    }
    if (Codes::kMin) {
      const __m512 min[2] = {LoadHalf(w + 64), LoadHalf(w + 96)};
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512 sum = _mm512_set1_ps(scale[r].scaled_sum);
        acc[r][0] = _mm512_fnmadd_ps(min[0], sum, acc[r][0]);
        acc[r][1] = _mm512_fnmadd_ps(min[1], sum, acc[r][1]);
      }
    }
    prefetch += a.prefetch_lines * 64;
    w += Codes::kBytes;
    x += a.x_stride;
    start += Codes::kStart == Start::kPlane ? a.row_stride : 0;
    scale += a.row_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_store_ps(a.acc + r * 32, acc[r][0]);
    _mm512_store_ps(a.acc + r * 32 + 16, acc[r][1]);
  }
}

template <class Codes>
void Widen(const uint8_t* in, int64_t blocks, uint8_t* out) {
  using Wide = CodesQ8<Codes::kMin>;
  for (int64_t b = 0; b < blocks; ++b, in += Codes::kBytes, out += Wide::kBytes) {
    for (int i = 0; i < Codes::kCodes; i += 64) _mm512_store_si512(out + i, Load(in + i));
      // With the zero point the start moves: the same integers w - zero, so the same bits.
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      _mm512_store_si512(out + Wide::kCodes + i * 64, Codes::Widened(in, i / 2, i % 2));
    }
  }
}

constexpr int kVnniRows = 6;

template <class Codes>
constexpr void Add(TileSet& set, int format) {
  constexpr TileFn kTiles[2][kVnniRows] = {
      {Tile<1, false, Codes>, Tile<2, false, Codes>, Tile<3, false, Codes>, Tile<4, false, Codes>,
       Tile<5, false, Codes>, Tile<6, false, Codes>},
      {Tile<1, true, Codes>, Tile<2, true, Codes>, Tile<3, true, Codes>, Tile<4, true, Codes>,
       Tile<5, true, Codes>, Tile<6, true, Codes>}};
  for (int stream = 0; stream < 2; ++stream) {
    for (int r = 0; r < kVnniRows; ++r) set.tile[format][stream][r] = kTiles[stream][r];
  }
}

// The 4 and 5 bit formats, in the order of WeightFormat (kQ4 = 2).
template <bool kGfni>
constexpr void AddNarrow(TileSet& set) {
  Add<CodesQ4<false, kGfni>>(set, 2);
  Add<CodesQ4<true, kGfni>>(set, 3);
  Add<CodesQ5<false, kGfni>>(set, 4);
  Add<CodesQ5<true, kGfni>>(set, 5);
  set.widen[2] = Widen<CodesQ4<false, kGfni>>;
  set.widen[3] = Widen<CodesQ4<true, kGfni>>;
  set.widen[4] = Widen<CodesQ5<false, kGfni>>;
  set.widen[5] = Widen<CodesQ5<true, kGfni>>;
}

}  // namespace
}  // namespace lapidary
