// How a product is cut: chunks of K, groups of panels, widening. None of it changes a bit of the
// result, so it is decided from the shape alone and tested against itself.
#pragma once
#include <cstdint>

#include "kernels/gemm/arithmetic.h"
#include "kernels/gemm/internal/tile.h"
#include "kernels/gemm/internal/tile_amx.h"
#include "kernels/gemm/packed_weight.h"

namespace lapidary {

// Rows that one set of accumulators holds, and the panels that share a pass over the activations.
inline constexpr int64_t kScratchRows = 256;
inline constexpr int64_t kMaxGroup = 4;

struct MatmulPlan {
  // AMX: the kernels of the format, by rows of a tile; of the rest group_panels alone counts.
  const AmxFn* amx = nullptr;
  const TileFn (*tiles)[kMaxTileRows] = nullptr;  // [stream][rows - 1]
  int max_rows = 0;
  WidenFn widen = nullptr;   // not null: chunks of kQ4* and kQ5* are widened to 8 bits in L1 first
  int tile_block_bytes = 0;  // of what the tile reads
  int64_t chunk_blocks = 0;  // K blocks kept in L1 while all rows pass over them
  int64_t group_panels = 1;  // panels that share one pass over the activations of a chunk
  int64_t unit_panels = 1;   // that no two threads share
};
// Parts the rows are cut into so that every thread has work: one while there are enough panels
// (rows in two parts read the weights twice), more for many rows of a narrow matrix on a wide team.
int64_t RowParts(int64_t panels, int64_t rows, int threads);

MatmulPlan PlanMatmul(const PackedWeight& w, int64_t rows, Arithmetic arithmetic);

}  // namespace lapidary
