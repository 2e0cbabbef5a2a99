// Products of experts with many tokens each: blocks of 64 x 64 or 128 x 128 (outputs x slots), a
// cp.async ring shared by the block, warps in a grid of two rows.
//
// 128 x 128: 64 FLOPs per byte brought into shared memory, 32 products per warp and 12 ldmatrix for
// each 32 bytes of k. The limit is the tensor cores' mma.sync rate, with few tokens an expert still
// the reading of weights.
#include "kernels/gemm/internal/grouped_item.inc.h"
#include "kernels/gemm/internal/grouped_launch.h"
#include "kernels/gemm/internal/grouped_tile.inc.h"
#include "kernels/gemm/stream_product_plan.h"

namespace lapidary {
namespace {

// Two blocks share a processor where there is more than 99 KiB of shared memory.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr bool kRoomForTwo = false;
#else
constexpr bool kRoomForTwo = true;
#endif

template <int kTokens_>
struct TileShape {
  static constexpr int kTokens = kTokens_;
  static constexpr int kRows = GroupedRowTile(kTokens);
  static constexpr int kWarpRows = 2, kWarpColumns = kTokens / 32;
  static constexpr int kThreads = 32 * kWarpRows * kWarpColumns;
  static constexpr int kM = kRows / kWarpRows / 16, kN = 32 / 8;  // fragments of a warp
  static constexpr int kWeightBytes = kRows * kTileRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kTileRowBytes;
};

// Blocks of a processor to leave registers for: two of 128 tokens have 128 a thread, too few for
// e4m3.
template <TileMath kMath, class S>
struct Residency {
  static constexpr int kBlocks =
      S::kTokens == 64 || (kRoomForTwo && kMath == TileMath::kBf16) ? 2 : 1;
};

// Brings a 128-byte tile of k of the block's weights and x rows into a stage.
template <class S>
class TileLoader {
 public:
  GPU_DEVICE TileLoader(const GroupedParams& p, const GroupedItem& item, int64_t tile_row)
      : k_bytes_(p.w.k * p.w.element_bytes()), x_stride_(p.in.stride * p.w.element_bytes()) {
    const uint8_t* matrix = static_cast<const uint8_t*>(p.w.data) + item.expert * p.w.bytes();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      // A tile that is not there (n not a multiple of 128): the last one again, never stored.
      const int64_t row = tile_row + i < p.w.tiles_n() ? tile_row + i : p.w.tiles_n() - 1;
      weights_[i] = matrix + row * p.w.tiles_k() * GpuMatrix::kTileBytes + threadIdx.x * kChunk;
    }
    x_ = static_cast<const uint8_t*>(p.in.x) + threadIdx.x % kChunks * kChunk;
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
      const int token = threadIdx.x / kChunks + j * kRowStep;
      const bool there = token < item.count;
      const int slot = item.first + token;
      x_row_[j] = !there ? 0 : p.row_of == nullptr ? slot : p.row_of[slot];
      tokens_ |= static_cast<uint32_t>(there) << j;
    }
  }

  GPU_DEVICE void Load(int tile, uint8_t* stage) const {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint8_t* source = weights_[i] + int64_t{tile} * GpuMatrix::kTileBytes;
#pragma unroll
      for (int j = 0; j < kTileSteps; ++j) {
        const int offset = j * S::kThreads * kChunk;
        gpu::CpAsync16(stage + i * GpuMatrix::kTileBytes + threadIdx.x * kChunk + offset,
                       source + offset);
      }
    }
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const int64_t left = k_bytes_ - int64_t{tile} * kTileRowBytes - chunk * kChunk;
    const int bytes = static_cast<int>(left < 0 ? 0 : left < kChunk ? left : kChunk);
    const uint8_t* x = x_ + int64_t{tile} * kTileRowBytes;
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
      gpu::CpAsyncUpTo16(stage + S::kWeightBytes + ChunkOffset(row + j * kRowStep, chunk),
                         x + x_row_[j] * x_stride_, tokens_ >> j & 1 ? bytes : 0);
    }
  }

 private:
  static constexpr int kTiles = S::kRows / GpuMatrix::kTileRows;
  static constexpr int kTileSteps = GpuMatrix::kTileBytes / kChunk / S::kThreads;
  static constexpr int kRowStep = S::kThreads / kChunks;
  static constexpr int kRowsEach = S::kTokens / kRowStep;
  const int64_t k_bytes_, x_stride_;
  const uint8_t* weights_[kTiles];
  const uint8_t* x_ = nullptr;
  int32_t x_row_[kRowsEach];
  uint32_t tokens_ = 0;
};

template <TileMath kMath, class S>
__global__ void __launch_bounds__(S::kThreads, Residency<kMath, S>::kBlocks)
    GroupedTileKernel(const __grid_constant__ GroupedParams p) {
  if constexpr (kMath == TileMath::kE4m3 && !kHasFastE4m3) return;
  GPU_DYN_SMEM(uint8_t, shared);
  const GroupedItem item = FindItem(p.begin, p.experts, S::kTokens, static_cast<int>(blockIdx.x));
  if (item.count == 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_row = warp % S::kWarpRows * S::kM * 16;
  const int first_token = warp / S::kWarpRows * S::kN * 8;
  const TileLoader<S> loader(p, item, int64_t{blockIdx.y} * (S::kRows / GpuMatrix::kTileRows));

  const int tiles = static_cast<int>(p.w.tiles_k());
#pragma unroll
  for (int i = 0; i < kGroupedStages - 1; ++i) {
    if (i < tiles) loader.Load(i, shared + i * S::kStageBytes);
    gpu::CpAsyncCommit();
  }
  float d[S::kM][S::kN][4];
  SetZero(d);
  int stage = 0, free_stage = kGroupedStages - 1;
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    gpu::CpAsyncWait<kGroupedStages - 2>();
    __syncthreads();
    if (i + kGroupedStages - 1 < tiles) {
      loader.Load(i + kGroupedStages - 1, shared + free_stage * S::kStageBytes);
    }
    gpu::CpAsyncCommit();
    const uint8_t* weights = shared + stage * S::kStageBytes;
    MultiplyTiles<kMath>(d, weights + first_row * kTileRowBytes,
                         weights + S::kWeightBytes + first_token * kTileRowBytes, lane);
    free_stage = stage;
    if (++stage == kGroupedStages) stage = 0;
  }
  __syncthreads();  // the ring becomes the place of the outputs

  BlockScales scales;
  const int64_t first_output = int64_t{blockIdx.y} * S::kRows;
  if (p.w.scale != nullptr) {
    scales = {p.w.scale + item.expert * p.w.n + first_output,
              p.w.n - first_output,
              p.in.scale,
              p.row_of,
              item.first,
              item.count};
  }
  const int64_t end = WrittenOutputs(p.out, p.w.n);
  const int thread = static_cast<int>(threadIdx.x);
  if (p.out.epilogue == ProductEpilogue::kGatedGelu) {
    StageSums<true>(d, first_row, first_token, S::kRows / 2, scales, shared, lane);
    __syncthreads();
    StoreStaged<S::kTokens, S::kRows / 2, S::kThreads>(shared, p.out, item.first, item.count,
                                                       first_output / 2, end, thread);
  } else {
    StageSums<false>(d, first_row, first_token, S::kRows, scales, shared, lane);
    __syncthreads();
    StoreStaged<S::kTokens, S::kRows, S::kThreads>(shared, p.out, item.first, item.count,
                                                   first_output, end, thread);
  }
}

template <TileMath kMath, class S>
cudaError_t Start(const GroupedParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(GroupedItems(p.max_slots, p.experts, S::kTokens)),
                  static_cast<unsigned>((p.w.n + S::kRows - 1) / S::kRows));
  return gpu::Launch(GroupedTileKernel<kMath, S>,
                     {.name = "grouped_tile_product",
                      .grid = grid,
                      .block = dim3(S::kThreads),
                      .shared_bytes = size_t{kGroupedStages * S::kStageBytes},
                      .stream = stream},
                     p);
}

template <TileMath kMath>
cudaError_t StartTokens(const GroupedParams& p, int token_tile, cudaStream_t stream) {
  if (token_tile == 64) return Start<kMath, TileShape<64>>(p, stream);
  if (token_tile == 128) return Start<kMath, TileShape<128>>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchGroupedTiles(const GroupedParams& p, int token_tile, const Chip& chip,
                               cudaStream_t stream) {
  if (p.w.number == GpuNumber::kBf16) return StartTokens<TileMath::kBf16>(p, token_tile, stream);
  const bool native = chip.compute_capability == 89 || chip.compute_capability >= 120;
  return native ? StartTokens<TileMath::kE4m3>(p, token_tile, stream)
                : StartTokens<TileMath::kWidened>(p, token_tile, stream);
}

}  // namespace lapidary
