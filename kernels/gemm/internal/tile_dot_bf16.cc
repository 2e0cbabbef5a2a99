// bf16 weights and activations with vdpbf16ps: two k a lane, the odd one first, with the
// instruction's own rounding (subnormals are zero), so its bits are its own.
#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/internal/prefetch.inc.h"
#include "kernels/gemm/internal/tile.h"

namespace lapidary {
namespace {

template <int kRows, bool kStream>
void Tile(const TileArgs& a) {
  __m512 acc[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      acc[r][h] = a.start_at_zero ? _mm512_setzero_ps() : _mm512_load_ps(a.acc + r * 32 + h * 16);
    }
  }
  const auto* x = static_cast<const uint8_t*>(a.x);
  const uint8_t* w = a.w;
  const uint8_t* prefetch = a.prefetch;
  for (int64_t b = 0; b < a.blocks; ++b) {
#pragma GCC unroll 4
    for (int pair = 0; pair < 16; ++pair) {
      PrefetchStep<kStream, 16, 32>(prefetch, pair, a.prefetch_lines);
      const auto w0 = (__m512bh)_mm512_loadu_si512(w + pair * 128);
      const auto w1 = (__m512bh)_mm512_loadu_si512(w + pair * 128 + 64);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto* at = reinterpret_cast<const int32_t*>(x + r * 64 + pair * 4);
        const auto v = (__m512bh)_mm512_set1_epi32(*at);
        acc[r][0] = _mm512_dpbf16_ps(acc[r][0], w0, v);
        acc[r][1] = _mm512_dpbf16_ps(acc[r][1], w1, v);
      }
    }
    prefetch += a.prefetch_lines * 64;
    w += 2048;
    x += a.x_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_store_ps(a.acc + r * 32, acc[r][0]);
    _mm512_store_ps(a.acc + r * 32 + 16, acc[r][1]);
  }
}

constexpr TileSet Make() {
  constexpr TileFn kTiles[2][12] = {
      {Tile<1, false>, Tile<2, false>, Tile<3, false>, Tile<4, false>, Tile<5, false>,
       Tile<6, false>, Tile<7, false>, Tile<8, false>, Tile<9, false>, Tile<10, false>,
       Tile<11, false>, Tile<12, false>},
      {Tile<1, true>, Tile<2, true>, Tile<3, true>, Tile<4, true>, Tile<5, true>, Tile<6, true>,
       Tile<7, true>, Tile<8, true>, Tile<9, true>, Tile<10, true>, Tile<11, true>,
       Tile<12, true>}};
  TileSet set = {};
  set.max_rows = 12;
  for (int stream = 0; stream < 2; ++stream) {
    for (int r = 0; r < 12; ++r) set.tile[6][stream][r] = kTiles[stream][r];  // kBf16
  }
  return set;
}

}  // namespace

constinit const TileSet kDotBf16Tiles = Make();

}  // namespace lapidary
