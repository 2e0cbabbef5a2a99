// What the driver knows of the AMX kernel: up to 64 rows through a run of panels.
//
// It is not a tile kernel (tile.h) because what costs AMX most is to begin: products come out 50
// cycles after their operands went in. So one call goes through many panels, block by block with
// all rows, and nothing waits at the seams. No inline function with external linkage: see tile.h.
#pragma once
#include <cstdint>

#include "kernels/gemm/internal/tile.h"
#include "kernels/gemm/packed_weight.h"

namespace lapidary {

// Rows go in tiles of equal size, an even number from kAmxLeastRows to kAmxMostRows.
constexpr int kAmxLeastRows = 10, kAmxMostRows = 16, kAmxMostTiles = 4;
// x and scale are read up to so many rows beyond the last.
constexpr int kAmxRowsBeyond = 15;
// Panels that stand side by side: each row of an accumulator is a row of both.
constexpr int kAmxPanels = 2;

struct AmxArgs {
  const uint8_t* w;         // first block of the first panel; the other panels follow
  const int8_t* x;          // first row in the first block
  const BlockScale* scale;  // the same place
  int64_t x_stride;         // bytes from block to block
  int64_t row_stride;       // elements of scale from block to block
  int64_t blocks, panels;
  int tiles;   // of rows
  float* acc;  // [tiles * rows of a tile][kAmxPanels][32], 64-byte aligned
  // Called when acc holds all of `panel`, counted from 0, and the next one if there is one.
  void (*done)(void* context, int64_t panel);
  void* context;
};
using AmxFn = void (*)(const AmxArgs&);

// [format][(rows of a tile - kAmxLeastRows) / 2]; null for kQ8Block16 and the float formats.
extern AmxFn const kAmxKernels[kWeightFormats][(kAmxMostRows - kAmxLeastRows) / 2 + 1];

}  // namespace lapidary
