// The float tiles: fp32 FMA over fp32 or bf16 weights, over a vector policy of 256 or 512 bits.
// Included by tile_fma_avx2.cc and tile_fma_avx512.cc alone.
//
// 512 bits: 12 rows x 32 columns, 24 accumulators that stay in registers. 256 bits: 6 rows x 16
// columns, 12 accumulators; the two halves of the panel take turns block by block.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/internal/prefetch.inc.h"
#include "kernels/gemm/internal/tile.h"

namespace lapidary {
namespace {

template <class V, int kRows, bool kStream, bool kBf16>
void Tile(const TileArgs& a) {
  using Float = typename V::Float;
  constexpr bool kWhole = V::kLanes == 16;  // two vectors are the whole panel
  constexpr int kBlockBytes = kBf16 ? 2048 : 4096;
  const auto* x = static_cast<const uint8_t*>(a.x);
  const uint8_t* w = a.w;
  const uint8_t* prefetch = a.prefetch;
  Float acc[kRows][2];
  for (int64_t b = 0; b < a.blocks; ++b) {
#pragma GCC unroll 2
    for (int half = 0; half * 2 * V::kLanes < 32; ++half) {
      float* acc_at = a.acc + half * 2 * V::kLanes;
      if (!kWhole || b == 0) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
          for (int j = 0; j < 2; ++j) {
            acc[r][j] = a.start_at_zero && b == 0 ? V::Zero()
                                                  : V::LoadFloat(acc_at + r * 32 + j * V::kLanes);
          }
        }
      }
      const uint8_t* w_at = w + half * 2 * V::kBytes;
#pragma GCC unroll 4
      for (int i = 0; i < 32; ++i) {
        if (half == 0) {
          PrefetchStep<kStream, 32, kBlockBytes / 64>(prefetch, i, a.prefetch_lines);
        }
        Float w0, w1;
        if constexpr (kBf16) {  // pairs: the even k is the low half of a lane
          const uint8_t* pair = w_at + i / 2 * 128;
          w0 = i % 2 == 0 ? V::EvenBf16(pair) : V::OddBf16(pair);
          w1 = i % 2 == 0 ? V::EvenBf16(pair + V::kBytes) : V::OddBf16(pair + V::kBytes);
        } else {
          w0 = V::LoadFloat(w_at + i * 128);
          w1 = V::LoadFloat(w_at + i * 128 + V::kBytes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Float v = V::BroadcastFloat(x + r * 128 + i * 4);
          acc[r][0] = V::Fma(v, w0, acc[r][0]);
          acc[r][1] = V::Fma(v, w1, acc[r][1]);
        }
      }
      if (!kWhole || b == a.blocks - 1) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          V::StoreFloat(acc_at + r * 32, acc[r][0]);
          V::StoreFloat(acc_at + r * 32 + V::kLanes, acc[r][1]);
        }
      }
    }
    prefetch += a.prefetch_lines * 64;
    w += kBlockBytes;
    x += a.x_stride;
  }
}

template <class V, bool kBf16, int kFirst>
constexpr void AddSix(TileSet& set, int format) {
  constexpr TileFn kTiles[2][6] = {
      {Tile<V, kFirst, false, kBf16>, Tile<V, kFirst + 1, false, kBf16>,
       Tile<V, kFirst + 2, false, kBf16>, Tile<V, kFirst + 3, false, kBf16>,
       Tile<V, kFirst + 4, false, kBf16>, Tile<V, kFirst + 5, false, kBf16>},
      {Tile<V, kFirst, true, kBf16>, Tile<V, kFirst + 1, true, kBf16>,
       Tile<V, kFirst + 2, true, kBf16>, Tile<V, kFirst + 3, true, kBf16>,
       Tile<V, kFirst + 4, true, kBf16>, Tile<V, kFirst + 5, true, kBf16>}};
  for (int stream = 0; stream < 2; ++stream) {
    for (int r = 0; r < 6; ++r) set.tile[format][stream][kFirst - 1 + r] = kTiles[stream][r];
  }
}

// kBf16 = 6 and kFp32 = 7 in WeightFormat.
template <class V, int kRows>
constexpr TileSet Make() {
  TileSet set = {};
  set.max_rows = kRows;
  AddSix<V, true, 1>(set, 6);
  AddSix<V, false, 1>(set, 7);
  if constexpr (kRows == 12) {
    AddSix<V, true, 7>(set, 6);
    AddSix<V, false, 7>(set, 7);
  }
  return set;
}

}  // namespace
}  // namespace lapidary
