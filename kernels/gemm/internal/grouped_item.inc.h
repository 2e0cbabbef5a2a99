// Which expert and which of its slots a block works on: found from begin[] by every warp for
// itself. Included by .cu files alone; everything is in an unnamed namespace.
#pragma once
#include "kernels/gemm/stream_product_cuda.h"
#include "kernels/gpu.h"

namespace lapidary {
namespace {

// The slots [first, first + count) of an expert; count is 0 where there is no such tile.
struct GroupedItem {
  int expert = 0;
  int first = 0;
  int count = 0;
};

// Tile number `item` of token_tile slots, counted through the experts in order. All lanes of a warp
// call it and get the same answer.
GPU_DEVICE GroupedItem FindItem(const int32_t* begin, int experts, int token_tile, int item) {
  constexpr int kMost = kMaxGroupedExperts / 32;
  const int lane = threadIdx.x % 32, each = (experts + 31) / 32, e0 = lane * each;
  int edge[kMost + 1];  // of this lane's experts
  int tiles = 0;
#pragma unroll
  for (int i = 0; i <= kMost; ++i) {
    if (i <= each) edge[i] = begin[e0 + i < experts ? e0 + i : experts];
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < each) tiles += (edge[i + 1] - edge[i] + token_tile - 1) / token_tile;
  }
  int end = tiles;  // of this lane's tiles among all
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, end, d);
    if (lane >= d) end += below;
  }
  const uint32_t owner = __ballot_sync(0xffffffffu, item >= end - tiles && item < end);
  if (owner == 0) return {};
  GroupedItem found;
  int left = item - (end - tiles);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i >= each) continue;
    const int slots = edge[i + 1] - edge[i];
    const int own = (slots + token_tile - 1) / token_tile;
    if (left >= 0 && left < own) {
      const int rest = slots - left * token_tile;
      found = {e0 + i, edge[i] + left * token_tile, rest < token_tile ? rest : token_tile};
    }
    left -= own;
  }
  const int lane_of = __ffs(static_cast<int>(owner)) - 1;
  found.expert = __shfl_sync(0xffffffffu, found.expert, lane_of);
  found.first = __shfl_sync(0xffffffffu, found.first, lane_of);
  found.count = __shfl_sync(0xffffffffu, found.count, lane_of);
  return found;
}

}  // namespace
}  // namespace lapidary
