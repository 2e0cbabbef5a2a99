// The int8 products with AMX.
//
// A tile product (tdpbsud) is 16 rows x 16 columns over a block of 32 k, exact in int32. From there
// on every output takes the steps that it takes with vpdpbusd, so the bits are the same. The
// integers go through memory (L1): tiles and vectors have no other way. What shapes the code,
// measured on Emerald Rapids:
//
//  - For 200 cycles after an AMX instruction the second 512-bit FMA port is closed, and storing a
//    tile takes 16 cycles. So vectors and tiles take turns every few instructions; in phases,
//    either would leave the other's units idle.
//  - A neighbour on the other hyperthread takes tile registers away from renaming: a load into a
//    tile then waits for the one before it, and all takes four times as long. A register that is
//    zero needs none, so tiles are zeroed after their last use. That is free without a neighbour.
//  - A tile load that misses L1 stops what comes behind it. So weights are fetched into L1, and
//    narrow codes widened there into a ring.
//  - Loads are what is short then: two panels side by side share those of the rows' factors.
//
// 16 rows x 32 columns x 32 k take 110 cycles (with a neighbour 150), with vpdpbusd 165 (240). With
// a scale per 16 k (kQ8Block16) AMX would gain nothing.
#include "kernels/gemm/internal/tile_amx.h"

#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/internal/codes_avx512.inc.h"

namespace lapidary {
namespace {

#define INLINE [[gnu::always_inline]] inline

// Tiles 0 to 3 are the products with four times 16 columns, two of each panel.
constexpr int kX = 4, kW = 6;

// The intrinsics of GCC 12 do not say that tiles are read from and written to memory.
template <int kTile>
INLINE void LoadTile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
INLINE void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
constexpr int kDots = 32 * kAmxPanels;  // of a row
template <int kTile>
INLINE void MoveOut(int32_t* dots) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(dots + kTile * 16), "r"(kDots * sizeof(int32_t)), "i"(kTile)
               : "memory");
  ZeroTile<kTile>();
}
// Tile 4 times 16 columns of codes.
template <int kTile>
INLINE void Multiply(const uint8_t* codes) {
  LoadTile<kW>(codes + kTile % 2 * 64, 128);
  asm volatile("tdpbsud %%tmm%c1, %%tmm%c2, %%tmm%c0" : : "i"(kTile), "i"(kW), "i"(kX));
  ZeroTile<kW>();
}

// The operand of ldtilecfg.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
void Configure() {
  TileShapes shapes;
  for (int product = 0; product < 4; ++product) {
    shapes.rows[product] = 16;
    shapes.row_bytes[product] = 64;
  }
  shapes.rows[kX] = 16;
  shapes.row_bytes[kX] = kBlockK;
  shapes.rows[kW] = kBlockK / 4;
  shapes.row_bytes[kW] = 64;
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}

template <class C>
constexpr bool kNarrow = (C::kBytes - C::kCodes) / kBlockK < kPanelColumns;

// Widened codes: of one block in use, of the next two, and of one in the making.
constexpr int kRing = 4, kRingBytes = kBlockK * kPanelColumns;
constexpr int kFetchBytes = 4096;  // that weights are fetched ahead, in each panel

// The place of one block of both panels.
template <class C>
struct Place {
  const AmxArgs& a;
  uint8_t* ring;
  const uint8_t* w;           // of the left panel
  int64_t right;              // bytes from there to the right panel; a last odd one is both
  int64_t block = 0, panels;  // panels: from here to the end, 0 or less behind it
  int slot = 0;               // of the ring

  INLINE Place(const AmxArgs& args, uint8_t* widened)
      : a(args), ring(widened), w(args.w), panels(args.panels) {
    right = Right();
  }
  INLINE int64_t Right() const { return panels > 1 ? a.blocks * C::kBytes : 0; }
  INLINE void Step() {
    slot = (slot + 1) % kRing;
    w += C::kBytes;
    if (++block < a.blocks) return;
    block = 0;
    w += right;
    panels -= kAmxPanels;
    right = Right();
  }
  INLINE uint8_t* Widened(int panel) const { return ring + (panel * kRing + slot) * kRingBytes; }
  INLINE const uint8_t* Codes(int panel) const {
    return kNarrow<C> ? Widened(panel) : w + panel * right + C::kCodes;
  }
};

// Eighths [begin, end) of a block's codes: one vector of nibbles becomes two.
template <class C>
INLINE void Widen(const uint8_t* block, uint8_t* to, int begin, int end) {
#pragma GCC unroll 2
  for (int i = begin; i < end; ++i) {
    const int step = i / 2 * 2, half = i % 2;
    _mm512_store_si512(to + step * 128 + half * 64, C::Widened(block, step, half));
    _mm512_store_si512(to + (step + 1) * 128 + half * 64, C::Widened(block, step + 1, half));
  }
}

struct ColumnFactors {
  __m512 scale[4], min[4];
};
template <class C>
INLINE ColumnFactors LoadFactors(const Place<C>& at) {
  ColumnFactors f = {};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint8_t* factors = at.w + i / 2 * at.right + i % 2 * 32;
    f.scale[i] = LoadHalf(factors);
    if (C::kMin) f.min[i] = LoadHalf(factors + 64);
  }
  return f;
}

// acc += dots * scales for one row of one block: the steps of tile_vnni.inc.h.
template <class C>
INLINE void AddRow(const int32_t* dots, const BlockScale& x, const ColumnFactors& w, float* acc) {
  const __m512i start = _mm512_set1_epi32(C::kMin ? kMagicBits : x.start);
  const __m512 x_scale = _mm512_set1_ps(x.scale), minus_magic = _mm512_set1_ps(x.minus_magic);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i bits = _mm512_add_epi32(start, _mm512_load_si512(dots + i * 16));
    const __m512 v = _mm512_fmadd_ps(_mm512_castsi512_ps(bits), x_scale, minus_magic);
    __m512 sum = _mm512_fmadd_ps(v, w.scale[i], _mm512_load_ps(acc + i * 16));
    if (C::kMin) sum = _mm512_fnmadd_ps(w.min[i], _mm512_set1_ps(x.scaled_sum), sum);
    _mm512_store_ps(acc + i * 16, sum);
  }
}

// What stands between the rows of a turn, which is one block for one tile of rows.
struct Between {
  // The tiles work for the next turn, whose left products are there already, and for the one after.
  const uint8_t *next_right = nullptr, *after_left = nullptr, *after_x = nullptr;
  int32_t* next_dots = nullptr;
};

template <class C, int kRows>
INLINE void Turn(const Place<C>& at, const BlockScale* scale, float* acc, const int32_t* dots,
                 const Between& between, const Place<C>* widen, const Place<C>* fetch) {
  constexpr int kPieces = kRows / 2, kLines = (C::kBytes + 63) / 64;
  const ColumnFactors factors = LoadFactors(at);
#pragma GCC unroll 8
  for (int p = 0; p < kPieces; ++p) {
    if (p == 0 && between.next_right != nullptr) {
      MoveOut<0>(between.next_dots);
      Multiply<2>(between.next_right);
    }
    if (p == kPieces / 4 && between.next_right != nullptr) {
      MoveOut<1>(between.next_dots);
      Multiply<3>(between.next_right);
      ZeroTile<kX>();
    }
    if (p == kPieces / 2) {
      if (between.next_right != nullptr) MoveOut<2>(between.next_dots);
      if (between.after_left != nullptr) {
        LoadTile<kX>(between.after_x, kBlockK);
        Multiply<0>(between.after_left);
      }
    }
    if (p == kPieces * 3 / 4) {
      if (between.next_right != nullptr) MoveOut<3>(between.next_dots);
      if (between.after_left != nullptr) Multiply<1>(between.after_left);
    }
    if (fetch != nullptr) {
#pragma GCC unroll 8
      for (int i = kLines * p / kPieces; i < kLines * (p + 1) / kPieces; ++i) {
        _mm_prefetch(fetch->w + i * 64, _MM_HINT_T0);
        _mm_prefetch(fetch->w + fetch->right + i * 64, _MM_HINT_T0);
      }
    }
    if constexpr (kNarrow<C>) {
      for (int panel = 0; panel < kAmxPanels && widen != nullptr; ++panel) {
        Widen<C>(widen->w + panel * widen->right, widen->Widened(panel), 8 * p / kPieces,
                 8 * (p + 1) / kPieces);
      }
    }
#pragma GCC unroll 2
    for (int r = 2 * p; r < 2 * p + 2; ++r) {
      AddRow<C>(dots + r * kDots, scale[r], factors, acc + r * kDots);
    }
  }
}

template <class C, int kRows>
void Kernel(const AmxArgs& a) {
  alignas(64) int32_t dots[2][16 * kDots];
  alignas(64) uint8_t ring[kNarrow<C> ? kAmxPanels * kRing * kRingBytes : 64];
  Place<C> at(a, ring), after = at, widen = at, fetch = at;
  if constexpr (kNarrow<C>) {
    for (int i = 0; i < kRing - 1; ++i, widen.Step()) {
      for (int panel = 0; panel < kAmxPanels && widen.panels > 0; ++panel) {
        Widen<C>(widen.w + panel * widen.right, widen.Widened(panel), 0, 8);
      }
    }
  }
  for (int i = 0; i < kFetchBytes / C::kBytes; ++i) fetch.Step();

  // The tiles are two turns ahead.
  int after_tile = 0;
  const auto step_after = [&] {
    if (++after_tile < a.tiles) return;
    after_tile = 0;
    after.Step();
  };
  const auto after_x = [&] {
    return reinterpret_cast<const uint8_t*>(a.x) + after.block * a.x_stride +
           after_tile * (kRows * kBlockK);
  };
  Configure();
  LoadTile<kX>(after_x(), kBlockK);
  Multiply<0>(after.Codes(0));
  Multiply<1>(after.Codes(0));
  Multiply<2>(after.Codes(1));
  Multiply<3>(after.Codes(1));
  MoveOut<0>(dots[0]);
  MoveOut<1>(dots[0]);
  MoveOut<2>(dots[0]);
  MoveOut<3>(dots[0]);
  step_after();
  Between between;
  if (after.panels > 0) {
    LoadTile<kX>(after_x(), kBlockK);
    Multiply<0>(after.Codes(0));
    Multiply<1>(after.Codes(0));
    between.next_right = after.Codes(1);
    step_after();
  }

  bool odd = false;
  const BlockScale* scale = a.scale;
  for (; at.panels > 0; at.Step(), widen.Step(), fetch.Step()) {
    if (at.block == 0) {
      scale = a.scale;
      for (int i = 0; i < a.tiles * kRows * kDots; i += 16) {
        _mm512_store_ps(a.acc + i, _mm512_setzero_ps());
      }
    }
    for (int tile = 0; tile < a.tiles; ++tile, odd = !odd) {
      const bool more = after.panels > 0;
      between.after_left = more ? after.Codes(0) : nullptr;
      between.after_x = after_x();
      between.next_dots = dots[!odd];
      const uint8_t* after_right = more ? after.Codes(1) : nullptr;
      Turn<C, kRows>(at, scale + tile * kRows, a.acc + tile * (kRows * kDots), dots[odd], between,
                     tile == 0 && widen.panels > 0 ? &widen : nullptr,
                     tile == 0 && fetch.panels > 0 ? &fetch : nullptr);
      between.next_right = after_right;
      step_after();
    }
    scale += a.row_stride;
    if (at.block == a.blocks - 1) a.done(a.context, a.panels - at.panels);
  }
  asm volatile("tilerelease");
}

#define KERNELS(C) \
  { Kernel<C, 10>, Kernel<C, 12>, Kernel<C, 14>, Kernel<C, 16> }
using Q4 = CodesQ4<false, true>;
using Q4Min = CodesQ4<true, true>;
using Q5 = CodesQ5<false, true>;
using Q5Min = CodesQ5<true, true>;

}  // namespace

// In the order of WeightFormat.
constinit AmxFn const kAmxKernels[kWeightFormats][4] = {
    KERNELS(CodesQ8<false>), {}, KERNELS(Q4), KERNELS(Q4Min), KERNELS(Q5), KERNELS(Q5Min)};

}  // namespace lapidary
