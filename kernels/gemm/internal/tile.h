// What the driver knows of the tile kernels: R rows x 32 columns over a run of K blocks.
//
// Tiles differ in R only by how often a line is repeated, so the bits of a row never depend on R:
// per output one fp32 accumulator,
//   int8:   acc = fma(dot_block * x_scale, w_scale, acc), [acc = fma(-min, scaled_sum, acc)]
//   float:  acc = fma(x, w, acc)
// with K ascending. The int8 dot inside a block is exact, hence free to be reordered, and every
// instruction set gives the same bits.
//
// This header and what else a tile_*.cc includes must define no inline function with external
// linkage: those files are compiled for instruction sets that the running CPU may lack, and the
// linker keeps any one copy of such a function for everybody.
#pragma once
#include <cstdint>

namespace lapidary {

// 3 * 2^22. An int32 accumulator started at the bits of this float plus v *is* the float kMagic + v
// (for |v| < 2^22; the worst block is 2^20), so integer results need no conversion instruction.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4B400000;

// Per row and block of quantised activations; each read by broadcast, all from one line.
struct BlockScale {
  float scale;        // of x; at most 22 significant bits, so that the next is exact
  float minus_magic;  // -kMagic * scale: fma(magic + v, scale, this) = v * scale, rounded once
  float scaled_sum;   // scale * sum(x), for formats with a min
  int32_t start;      // kMagicBits - 128 * sum(x): the accumulator's start for 8-bit codes
};

// Where a format's start value comes from: constant for zero point 0, BlockScale for 128, and a
// plane of its own (TileArgs::start) for 8 and 16.
enum class Start { kConstant, kInScale, kPlane };

struct TileArgs {
  const uint8_t* w;         // first block
  const void* x;            // first row of the tile in the first block
  const int32_t* start;     // kMagicBits - zero_point * sum(x), the same place; for Start::kPlane
  const BlockScale* scale;  // the same place; null for float formats
  int64_t x_stride;         // bytes from block to block
  int64_t row_stride;       // elements of start and scale from block to block
  int64_t blocks;
  float* acc;               // [rows][32], 64-byte aligned
  bool start_at_zero;       // else continues from acc
  const uint8_t* prefetch;  // weights needed next; may point past the end of the matrix
  int prefetch_lines;       // 64-byte lines per block; ignored by the stream variant
};
using TileFn = void (*)(const TileArgs&);
// Widens blocks to 8 bits: zero point 128, or 0 for those with a min.
using WidenFn = void (*)(const uint8_t* in, int64_t blocks, uint8_t* out);

// The weight formats in their order, then what kQ4Min and kQ5Min blocks widen to.
constexpr int kTileFormats = 9;
constexpr int kWidenedMin = 8;
constexpr int kWidenedMinBytes = 128 + 1024;
constexpr int kMaxTileRows = 12;

// The kernels of one instruction set. Null where it has none.
struct TileSet {
  int max_rows;
  // [format][stream][rows - 1]; stream: the variant for a single pass over the weights, which
  // prefetches a block per block.
  TileFn tile[kTileFormats][2][kMaxTileRows];
  WidenFn widen[kTileFormats];
};

extern const TileSet kVnniTiles;        // tile_vnni.cc: AVX-512 VNNI
extern const TileSet kVnniGfniTiles;    // tile_vnni_gfni.cc: the 4 and 5 bit formats, with GFNI
extern const TileSet kMaddAvx512Tiles;  // tile_madd_avx512.cc: AVX-512BW without VNNI
extern const TileSet kMaddAvx2Tiles;    // tile_madd_avx2.cc
extern const TileSet kFmaAvx512Tiles;   // tile_fma_avx512.cc
extern const TileSet kFmaAvx2Tiles;     // tile_fma_avx2.cc
extern const TileSet kDotBf16Tiles;     // tile_dot_bf16.cc

}  // namespace lapidary
