// Products of experts with few tokens each: stream_product.cu with one matrix per expert.
//
// A block is 64 (or 16) outputs of one expert for up to token_tile of its slots. The grid is
// bounded by what the host knows (max_slots, experts), so a recorded graph stays valid; a block
// finds its expert from begin[] and leaves when there is none. Blocks of one expert that share a
// matrix tile are neighbours in the grid, so that only the first of them reads it from memory.
//
// Bytes: 2 n k per active expert (n k for e4m3) and token tile, once; x rows from the L2 cache. The
// limit is memory bandwidth. On sm_90 and later one bulk copy brings a tile: 8 KiB, contiguous.
#include "kernels/gemm/internal/grouped_item.inc.h"
#include "kernels/gemm/internal/grouped_launch.h"
#include "kernels/gemm/internal/stream_tile.inc.h"

namespace lapidary {
namespace {

template <TileMath kMath, int kRows, int kTokens, bool kBulk>
__global__ void __launch_bounds__(kStreamThreads, 2)
    GroupedStreamKernel(const __grid_constant__ GroupedParams p) {
#if !GPU_HAS_BULK_COPY
  if constexpr (kBulk) return;
#endif
  GPU_DYN_SMEM(uint8_t, shared);
  const GroupedItem item = FindItem(p.begin, p.experts, kTokens, static_cast<int>(blockIdx.x));
  if (item.count == 0) return;
  StreamWork work;
  work.weights = static_cast<const uint8_t*>(p.w.data) + item.expert * p.w.bytes();
  if (p.w.scale != nullptr) work.weight_scale = p.w.scale + item.expert * p.w.n;
  work.first_output = int64_t{blockIdx.y} * kRows;
  work.row_of = p.row_of;
  work.first_slot = item.first;
  work.count = item.count;
  StreamBlock<kMath, kRows, kTokens, kBulk ? WeightSource::kBulk : WeightSource::kTiled>(
      p.w, p.in, p.out, work, shared);
}

template <TileMath kMath, int kRows, int kTokens, bool kBulk>
cudaError_t Start(const GroupedParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(GroupedItems(p.max_slots, p.experts, kTokens)),
                  static_cast<unsigned>((p.w.n + kRows - 1) / kRows));
  return gpu::Launch(GroupedStreamKernel<kMath, kRows, kTokens, kBulk>,
                     {.name = "grouped_product",
                      .grid = grid,
                      .block = dim3(kStreamThreads),
                      .shared_bytes = size_t{StreamSharedBytes(kRows, kTokens)},
                      .stream = stream},
                     p);
}

template <TileMath kMath, bool kBulk>
cudaError_t StartTokens(const GroupedParams& p, const GroupedPlan& plan, cudaStream_t stream) {
  switch (plan.token_tile) {
    case 8:
      return plan.row_tile == 16 ? Start<kMath, 16, 8, kBulk>(p, stream)
                                 : Start<kMath, 64, 8, kBulk>(p, stream);
    case 16:
      return Start<kMath, 64, 16, kBulk>(p, stream);
    case 32:
      return Start<kMath, 64, 32, kBulk>(p, stream);
  }
  return cudaErrorInvalidValue;
}

template <TileMath kMath>
cudaError_t StartMath(const GroupedParams& p, const GroupedPlan& plan, const Chip& chip,
                      cudaStream_t stream) {
  return chip.has_bulk_copy() ? StartTokens<kMath, true>(p, plan, stream)
                              : StartTokens<kMath, false>(p, plan, stream);
}

}  // namespace

cudaError_t LaunchGroupedProduct(const GroupedParams& p, const GroupedPlan& plan, const Chip& chip,
                                 cudaStream_t stream) {
  if (!GroupedTilesExist(plan.row_tile, plan.token_tile) || !ValidProduct(p.w, p.in, p.out) ||
      !p.w.tiled || p.begin == nullptr || p.experts <= 0 || p.experts > kMaxGroupedExperts ||
      p.max_slots < 0 || p.max_slots > INT32_MAX || p.w.n > int64_t{65535} * 16 ||
      GroupedSharedBytes(plan.row_tile, plan.token_tile) > chip.shared_bytes) {
    return cudaErrorInvalidValue;
  }
  if (p.out.epilogue == ProductEpilogue::kFp32) return cudaErrorInvalidValue;
  if (plan.wgmma &&
      (plan.token_tile != 128 || !chip.has_wgmma() || p.w.number != GpuNumber::kBf16 ||
       kGroupedWgmmaSharedBytes > chip.shared_bytes)) {
    return cudaErrorInvalidValue;
  }
  if (p.max_slots == 0) return cudaSuccess;
  if (plan.wgmma) return LaunchGroupedWgmma(p, stream);
  if (plan.token_tile > 32) return LaunchGroupedTiles(p, plan.token_tile, chip, stream);
  return p.w.number == GpuNumber::kBf16 ? StartMath<TileMath::kBf16>(p, plan, chip, stream)
                                        : StartMath<TileMath::kWidened>(p, plan, chip, stream);
}

}  // namespace lapidary
