// Device code: sums of whole numbers over the threads of a block, in thread order.
#pragma once
#include "kernels/gpu.h"

namespace lapidary {

template <int kThreads>
struct BlockScan {
  static constexpr int kWarps = kThreads / 32;
  // Each use in a kernel has its own, or a barrier in between.
  struct Shared {
    int64_t warps[kWarps];
  };

  // The sum of v over this thread and those before it; *total over all.
  GPU_DEVICE static int64_t Inclusive(int64_t v, Shared& s, int64_t* total) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int d = 1; d < 32; d *= 2) {
      const int64_t other = __shfl_up_sync(0xffffffffu, v, d);
      if (lane >= d) v += other;
    }
    if (lane == 31) s.warps[warp] = v;
    __syncthreads();
    int64_t sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) v += sum;
      sum += s.warps[w];
    }
    *total = sum;
    return v;
  }
};

}  // namespace lapidary
