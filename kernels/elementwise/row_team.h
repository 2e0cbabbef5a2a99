// Device code: the threads that share a row, a warp for narrow rows (several in a block), else the
// block; and the host's choice between them, a function of the width alone, so that a row's sums
// have one order.
#pragma once
#include "kernels/elementwise/row_units.h"

namespace lapidary {

constexpr int kWarpRowWidth = 512;
constexpr int kWarpRowsPerBlock = 4;
constexpr int kMaxRowThreads = 768;

// The launch for `rows` rows of `width` elements (of the widest operand).
struct RowLaunch {
  bool warp_rows = false;
  dim3 grid, block;
};
inline RowLaunch PlanRows(int64_t rows, int64_t width) {
  RowLaunch launch;
  launch.warp_rows = width <= kWarpRowWidth;
  if (launch.warp_rows) {
    launch.grid = dim3(static_cast<unsigned>((rows + kWarpRowsPerBlock - 1) / kWarpRowsPerBlock));
    launch.block = dim3(32, kWarpRowsPerBlock);
    return launch;
  }
  const int64_t threads = (width + kUnit * 32 - 1) / (kUnit * 32) * 32;
  launch.grid = dim3(static_cast<unsigned>(rows));
  launch.block = dim3(static_cast<unsigned>(threads < kMaxRowThreads ? threads : kMaxRowThreads));
  return launch;
}
inline constexpr int64_t kMaxRows = 0x7fffffff;  // of a grid

template <bool kWarpRows>
struct RowTeam {
  static constexpr int kMaxThreads = kWarpRows ? 32 * kWarpRowsPerBlock : kMaxRowThreads;
  // Units of a row that a thread keeps in registers; what lies beyond (columns from 6144 on) is
  // read again.
  static constexpr int kKept = kWarpRows ? kWarpRowWidth / (32 * kUnit) : 1;
  // Room for a number of each warp; each sum of a kernel has its own.
  using Shared = float[32];

  GPU_DEVICE int64_t row() const {
    return kWarpRows ? int64_t{blockIdx.x} * kWarpRowsPerBlock + threadIdx.y : blockIdx.x;
  }
  GPU_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  GPU_DEVICE int threads() const { return kWarpRows ? 32 : static_cast<int>(blockDim.x); }

  // The same bits in every thread: butterflies over lanes, then over warps.
  GPU_DEVICE float Sum(float v, Shared& shared) const {
    v = gpu::WarpSum(v);
    if constexpr (kWarpRows) return v;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    const unsigned lane = threadIdx.x % 32;
    return gpu::WarpSum(lane < blockDim.x / 32 ? shared[lane] : 0.0f);
  }
  // Of numbers that are not negative.
  GPU_DEVICE float Max(float v, Shared& shared) const {
    v = gpu::WarpMax(v);
    if constexpr (kWarpRows) return v;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    const unsigned lane = threadIdx.x % 32;
    return gpu::WarpMax(lane < blockDim.x / 32 ? shared[lane] : 0.0f);
  }
};

inline bool AlignedRows(const void* p, int64_t stride_bytes, int64_t to) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(stride_bytes)) % to == 0;
}

}  // namespace lapidary
