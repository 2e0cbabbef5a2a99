// The int8 tiles without VNNI: 16-bit multiply-adds, over a vector policy of 256 or 512 bits.
// Included by tile_madd_avx2.cc and tile_madd_avx512.cc alone.
//
// vpmaddubsw adds two products u8 * s8 into int16 and would saturate with 8-bit codes (255 * 127 *
// 2), so those are split into even and odd k, widened to 16 bits, and multiplied by vpmaddwd into
// int32: exact. 4 and 5 bit codes stay below: eight steps of 2 * 15 * 127 or four of 2 * 31 * 127
// fit int16.
//
// Two vectors of columns at a time; fp32 accumulators wait in memory (L1) between blocks.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/internal/prefetch.inc.h"
#include "kernels/gemm/internal/tile.h"

namespace lapidary {
namespace {

// The formats: 8-bit codes by step of 4 k; 4-bit codes; a fifth bit.
struct Wide32 {
  static constexpr int kSteps = 8, kCodes = 64, kBytes = kCodes + 1024;
  static constexpr bool kMin = false;
  static constexpr Start kStart = Start::kInScale;
};
struct Wide16 {
  static constexpr int kSteps = 4, kCodes = 64, kBytes = kCodes + 512;
  static constexpr bool kMin = false;
  static constexpr Start kStart = Start::kInScale;
};
template <bool kHasMin, bool kFifthBit>
struct Narrow {
  static constexpr int kSteps = 8, kCodes = kHasMin ? 128 : 64;
  static constexpr int kBytes = kCodes + 512 + (kFifthBit ? 128 : 0);
  static constexpr bool kMin = kHasMin, kFifth = kFifthBit;
  static constexpr Start kStart = kHasMin ? Start::kConstant : Start::kPlane;
  static constexpr int kGroup = kFifthBit ? 4 : 8;  // steps that fit an int16 sum
};

// dot[r][j] += codes * x for all of a block: kSteps steps, vectors v0 and v0 + 1 of the columns.
template <class V, class Codes, int kRows, bool kStream>
[[gnu::always_inline]] inline void DotWide(const TileArgs& a, const uint8_t* w, const int8_t* x,
                                           const uint8_t* prefetch, int v0,
                                           typename V::Int dot[kRows][2]) {
  using Int = typename V::Int;
  constexpr int kBlock = Codes::kSteps * 4;
#pragma GCC unroll 8
  for (int s = 0; s < Codes::kSteps; ++s) {
    if (v0 == 0) {
      PrefetchStep<kStream, Codes::kSteps, Codes::kBytes / 64>(prefetch, s, a.prefetch_lines);
    }
    const uint8_t* at = w + Codes::kCodes + s * 128 + v0 * V::kBytes;
    const Int raw0 = V::Load(at), raw1 = V::Load(at + V::kBytes);
    const Int even0 = V::And(raw0, V::Set16(255)), odd0 = V::ShiftRight16(raw0, 8);
    const Int even1 = V::And(raw1, V::Set16(255)), odd1 = V::ShiftRight16(raw1, 8);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Int four = V::Broadcast32(x + r * kBlock + s * 4);
      const Int x_even = V::ShiftRightSigned16(V::ShiftLeft16(four, 8), 8);
      const Int x_odd = V::ShiftRightSigned16(four, 8);
      dot[r][0] = V::Add32(dot[r][0], V::MultiplyAdd16(even0, x_even));
      dot[r][1] = V::Add32(dot[r][1], V::MultiplyAdd16(even1, x_even));
      dot[r][0] = V::Add32(dot[r][0], V::MultiplyAdd16(odd0, x_odd));
      dot[r][1] = V::Add32(dot[r][1], V::MultiplyAdd16(odd1, x_odd));
    }
  }
}

template <class V, class Codes, int kRows, bool kStream>
[[gnu::always_inline]] inline void DotNarrow(const TileArgs& a, const uint8_t* w, const int8_t* x,
                                             const uint8_t* prefetch, int v0,
                                             typename V::Int dot[kRows][2]) {
  using Int = typename V::Int;
#pragma GCC unroll 2
  for (int group = 0; group < Codes::kSteps; group += Codes::kGroup) {
    Int sum[kRows][2];
#pragma GCC unroll 8
    for (int s = group; s < group + Codes::kGroup; ++s) {
      if (v0 == 0) {
        PrefetchStep<kStream, Codes::kSteps, Codes::kBytes / 64>(prefetch, s, a.prefetch_lines);
      }
      Int code[2];
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Int v = V::Load(w + Codes::kCodes + s / 2 * 128 + (v0 + j) * V::kBytes);
        code[j] = V::And(s % 2 == 0 ? v : V::ShiftRight16(v, 4), V::Set8(15));
        if constexpr (Codes::kFifth) {
          const uint8_t* bits = w + Codes::kCodes + 512 + s * 16 + (v0 + j) * V::kBytes / 8;
          code[j] = V::AddFifthBit(code[j], bits);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Int four = V::Broadcast32(x + r * 32 + s * 4);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          const Int product = V::MultiplyAdd8(code[j], four);
          sum[r][j] = s == group ? product : V::Add16(sum[r][j], product);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        dot[r][j] = V::Add32(dot[r][j], V::MultiplyAdd16(sum[r][j], V::Set16(1)));
      }
    }
  }
}

template <class V, int kRows, bool kStream, class Codes>
void Tile(const TileArgs& a) {
  using Int = typename V::Int;
  using Float = typename V::Float;
  constexpr int kBlock = Codes::kSteps * 4;
  const auto* x = static_cast<const int8_t*>(a.x);
  const int32_t* start = a.start;
  const BlockScale* scale = a.scale;
  const uint8_t* w = a.w;
  const uint8_t* prefetch = a.prefetch;
  for (int64_t b = 0; b < a.blocks; ++b) {
#pragma GCC unroll 2
    for (int v0 = 0; v0 * V::kLanes < 32; v0 += 2) {
      Int dot[kRows][2];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        dot[r][0] = dot[r][1] = Codes::kStart == Start::kInScale ? V::Broadcast32(&scale[r].start)
                                : Codes::kStart == Start::kPlane ? V::Broadcast32(start + r)
                                                                 : V::Set32(kMagicBits);
      }
      if constexpr (kBlock == 16 || Codes::kBytes == Wide32::kBytes) {
        DotWide<V, Codes, kRows, kStream>(a, w, x, prefetch, v0, dot);
      } else {
        DotNarrow<V, Codes, kRows, kStream>(a, w, x, prefetch, v0, dot);
      }
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const int column = (v0 + j) * V::kLanes;
        const Float w_scale = V::LoadHalf(w + column * 2);
        Float min;
        if constexpr (Codes::kMin) min = V::LoadHalf(w + 64 + column * 2);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          float* at = a.acc + r * 32 + column;
          Float acc = a.start_at_zero && b == 0 ? V::Zero() : V::LoadFloat(at);
          const Float v = V::Fma(V::AsFloat(dot[r][j]), V::BroadcastFloat(&scale[r].scale),
                                 V::BroadcastFloat(&scale[r].minus_magic));
          acc = V::Fma(v, w_scale, acc);
          if constexpr (Codes::kMin) {
            acc = V::MinusFma(min, V::BroadcastFloat(&scale[r].scaled_sum), acc);
          }
          V::StoreFloat(at, acc);
        }
      }
    }
    prefetch += a.prefetch_lines * 64;
    w += Codes::kBytes;
    x += a.x_stride;
    start += Codes::kStart == Start::kPlane ? a.row_stride : 0;
    scale += a.row_stride;
  }
}

template <class V, class Codes>
constexpr void Add(TileSet& set, int format) {
  constexpr TileFn kTiles[2][4] = {{Tile<V, 1, false, Codes>, Tile<V, 2, false, Codes>,
                                    Tile<V, 3, false, Codes>, Tile<V, 4, false, Codes>},
                                   {Tile<V, 1, true, Codes>, Tile<V, 2, true, Codes>,
                                    Tile<V, 3, true, Codes>, Tile<V, 4, true, Codes>}};
  for (int stream = 0; stream < 2; ++stream) {
    for (int r = 0; r < 4; ++r) set.tile[format][stream][r] = kTiles[stream][r];
  }
}

// In the order of WeightFormat. Nothing is widened: narrow codes are the faster ones here.
template <class V>
constexpr TileSet Make() {
  TileSet set = {};
  set.max_rows = 4;
  Add<V, Wide32>(set, 0);
  Add<V, Wide16>(set, 1);
  Add<V, Narrow<false, false>>(set, 2);
  Add<V, Narrow<true, false>>(set, 3);
  Add<V, Narrow<false, true>>(set, 4);
  Add<V, Narrow<true, true>>(set, 5);
  return set;
}

}  // namespace
}  // namespace lapidary
