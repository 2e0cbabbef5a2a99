// Host decisions of the device products: tiles, shared memory, grids.
#pragma once
#include <cstdint>

#include "kernels/chip.h"
#include "kernels/gemm/stream_product_cuda.h"

namespace lapidary {

inline constexpr int kStreamWarps = 4;
inline constexpr int kStreamThreads = 32 * kStreamWarps;

// A warp's buffer: a 128-byte tile of k for the block's outputs and tokens.
LAPIDARY_HOST_DEVICE constexpr int StreamStageBytes(int row_tile, int token_tile) {
  return (row_tile + token_tile) * 128;
}
// Buffers of a warp's ring: enough for 64 KiB of weights on their way per block of 64 rows (an H100
// needs about 25 KiB per processor, a B200 about 45), few enough that a block fits 99 KiB where it
// can and that several share a processor.
LAPIDARY_HOST_DEVICE constexpr int StreamStages(int row_tile, int token_tile) {
  if (row_tile == 64 || token_tile == 64) return 2;
  return row_tile == 32 ? 3 : 4;
}
LAPIDARY_HOST_DEVICE constexpr int StreamSharedBytes(int row_tile, int token_tile) {
  const int buffers = kStreamWarps * StreamStages(row_tile, token_tile);
  return buffers * (StreamStageBytes(row_tile, token_tile) + 8);  // 8: the buffer's mbarrier
}

// -- Experts. Tiles of up to 32 tokens stream as above, by blocks of 64 or 16 outputs; larger
// ones are blocks of token_tile x token_tile (64 or 128) with a ring of kGroupedStages.
inline constexpr int kGroupedStages = 3;
LAPIDARY_HOST_DEVICE constexpr int GroupedRowTile(int token_tile) {
  return token_tile <= 64 ? 64 : 128;
}
LAPIDARY_HOST_DEVICE constexpr bool GroupedTilesExist(int row_tile, int token_tile) {
  if (token_tile != 8 && token_tile != 16 && token_tile != 32 && token_tile != 64 &&
      token_tile != 128) {
    return false;
  }
  return row_tile == GroupedRowTile(token_tile) || (row_tile == 16 && token_tile == 8);
}
LAPIDARY_HOST_DEVICE constexpr int GroupedSharedBytes(int row_tile, int token_tile) {
  return token_tile <= 32 ? StreamSharedBytes(row_tile, token_tile)
                          : kGroupedStages * (row_tile + token_tile) * 128;
}
// The ring, two mbarriers for each of its buffers, and the x rows.
inline constexpr int kGroupedWgmmaSharedBytes = kGroupedStages * ((128 + 128) * 128 + 2 * 8) + 512;
// Bound of the tiles of tokens that `slots` slots make: each full, and one more per expert in use.
LAPIDARY_HOST_DEVICE constexpr int64_t GroupedItems(int64_t slots, int experts, int token_tile) {
  const int64_t used = experts < slots ? experts : slots;
  const int64_t items = slots / token_tile + used;
  return items < slots ? items : slots;
}

// Sizes, strides and alignment that every product needs (stream_product_plan.cc).
bool ValidProduct(const GpuMatrix& w, const ProductInput& in, const ProductOutput& out);

// The smallest tile that holds them, or the largest.
LAPIDARY_HOST_DEVICE constexpr int StreamTokenTile(int64_t tokens) {
  return tokens <= 8 ? 8 : tokens <= 16 ? 16 : tokens <= 32 ? 32 : 64;
}

}  // namespace lapidary
