// Products of experts with many tokens each, on Hopper (sm_90a): blocks of 128 outputs x 128 slots.
// One warp brings tiles in (weights by bulk copies, they lie in memory as wgmma wants them;
// gathered x rows by cp.async into the same swizzle), two warpgroups multiply 64 outputs each.
//
// A stage of 64 k is 32 KiB and 2.1 MFLOPs: 512 cycles of the tensor cores; its operands are 48 KiB
// read and 32 KiB written in shared memory, 640 cycles at 128 bytes each: the limit, until few
// tokens an expert make it the reading of weights. Two blocks share a processor, so that the sums
// of one are stored while the other multiplies.
//
// Barriers per stage: `full` (the bytes of the weights, and each lane of the producer once its x
// chunks are there) and `empty` (each consumer warp once its products are done). cp.async writes
// through the generic proxy and wgmma reads through the async one, so every lane fences between its
// wait and its arrival. A lane waits for the stage before the one it has just filled: copies of two
// stages are on their way.
#include "kernels/gemm/internal/grouped_item.inc.h"
#include "kernels/gemm/internal/grouped_launch.h"
#include "kernels/gemm/internal/grouped_tile.inc.h"
#include "kernels/gemm/stream_product_plan.h"

namespace lapidary {
namespace {

constexpr int kRows = 128, kTokens = 128;
constexpr int kConsumerWarps = 8, kConsumers = 32 * kConsumerWarps;
constexpr int kThreads = kConsumers + 32;
constexpr int kWeightBytes = kRows * kTileRowBytes;
constexpr int kStageBytes = kWeightBytes + kTokens * kTileRowBytes;
constexpr int kStages = kGroupedStages;
static_assert(kStages * (kStageBytes + 2 * int{sizeof(gpu::Mbarrier)}) + kTokens * 4 ==
              kGroupedWgmmaSharedBytes);

#if GPU_HAS_WGMMA

// The two mbarriers of each stage, behind the ring.
struct StageBarriers {
  gpu::Mbarrier* full;
  gpu::Mbarrier* empty;
};

// One warp: fills stage after stage.
GPU_DEVICE void Produce(const GroupedParams& p, const GroupedItem& item, uint8_t* ring,
                        const StageBarriers& bars, int32_t* x_rows, int lane) {
  constexpr int kTiles = kRows / GpuMatrix::kTileRows;
  const uint8_t* matrix = static_cast<const uint8_t*>(p.w.data) + item.expert * p.w.bytes();
  const uint8_t* weights[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    // A tile that is not there (n not a multiple of 128): the last one again, never stored.
    const int64_t row = int64_t{blockIdx.y} * kTiles + i;
    const int64_t there = row < p.w.tiles_n() ? row : p.w.tiles_n() - 1;
    weights[i] = matrix + there * p.w.tiles_k() * GpuMatrix::kTileBytes;
  }
  // A lane copies a chunk of tokens first, first + 4, ...; their x rows wait in shared memory, four
  // of a lane side by side (-1: no such token), since registers are what lets two blocks run.
  const int first = lane / kChunks, chunk = lane % kChunks;
#pragma unroll
  for (int j = 0; j < kTokens / 32; ++j) {
    const int token = lane + 32 * j, slot = item.first + token;
    x_rows[token % 4 * (kTokens / 4) + token / 4] = token >= item.count   ? -1
                                                    : p.row_of == nullptr ? slot
                                                                          : p.row_of[slot];
  }
  __syncwarp();
  const int64_t k_bytes = p.w.k * p.w.element_bytes(), x_stride = p.in.stride * p.w.element_bytes();
  const uint8_t* x = static_cast<const uint8_t*>(p.in.x) + chunk * kChunk;
  const int tiles = static_cast<int>(p.w.tiles_k());
  int stage = 0, before = kStages - 1;
  uint32_t parity = 1;  // of the phase in which the stage becomes free; passes at once at first
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    uint8_t* buffer = ring + stage * kStageBytes;
    if (i >= kStages) gpu::MbarrierWait(bars.empty + stage, parity);
    if (lane == 0) {
      gpu::MbarrierArriveExpect(bars.full + stage, kWeightBytes);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        gpu::BulkCopyToShared(buffer + t * GpuMatrix::kTileBytes,
                              weights[t] + int64_t{i} * GpuMatrix::kTileBytes,
                              GpuMatrix::kTileBytes, bars.full + stage);
      }
    }
    const int64_t left = k_bytes - int64_t{i} * kTileRowBytes - chunk * kChunk;
    const int bytes = static_cast<int>(left < 0 ? 0 : left < kChunk ? left : kChunk);
    const uint8_t* source = x + int64_t{i} * kTileRowBytes;
#pragma unroll
    for (int j = 0; j < kTokens / 4; j += 4) {
      const int4 rows = gpu::Load<int4>(x_rows + first * (kTokens / 4) + j);
      const int32_t row[4] = {rows.x, rows.y, rows.z, rows.w};
#pragma unroll
      for (int i4 = 0; i4 < 4; ++i4) {
        gpu::CpAsyncUpTo16(buffer + kWeightBytes + ChunkOffset(first + 4 * (j + i4), chunk),
                           source + (row[i4] < 0 ? 0 : row[i4]) * x_stride,
                           row[i4] >= 0 ? bytes : 0);
      }
    }
    gpu::CpAsyncCommit();
    if (i > 0) {
      gpu::CpAsyncWait<1>();
      gpu::FenceProxyAsync();
      gpu::MbarrierArrive(bars.full + before);
    }
    before = stage;
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  gpu::CpAsyncWait<0>();
  gpu::FenceProxyAsync();
  gpu::MbarrierArrive(bars.full + before);
}

// A warpgroup: d += 64 rows of every stage times its tokens.
GPU_DEVICE void Consume(float (&d)[64], int tiles, int group, const uint8_t* ring,
                        const StageBarriers& bars, int lane) {
  int stage = 0, before = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    const uint8_t* buffer = ring + stage * kStageBytes;
    gpu::MbarrierWait(bars.full + stage, parity);
    gpu::WgmmaFence();
    const uint64_t a = gpu::WgmmaDescriptor(buffer + group * GpuMatrix::kTileBytes);
    const uint64_t b = gpu::WgmmaDescriptor(buffer + kWeightBytes);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      gpu::WgmmaM64N128K16(d, a + step * 2, b + step * 2);  // 32 bytes on, in units of 16
    }
    gpu::WgmmaCommit();
    if (i > 0) {
      gpu::WgmmaWait<1>();
      __syncwarp();  // lane 0 speaks for the warp
      if (lane == 0) gpu::MbarrierArrive(bars.empty + before);
    }
    before = stage;
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  gpu::WgmmaWait<0>();
}

#endif

__global__ void __launch_bounds__(kThreads, 2)
    GroupedWgmmaKernel(const __grid_constant__ GroupedParams p) {
#if GPU_HAS_WGMMA
  GPU_DYN_SMEM(uint8_t, shared);
  const GroupedItem item = FindItem(p.begin, p.experts, kTokens, static_cast<int>(blockIdx.x));
  if (item.count == 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t* x_rows = reinterpret_cast<int32_t*>(shared + kStages * kStageBytes);
  gpu::Mbarrier* bars = reinterpret_cast<gpu::Mbarrier*>(x_rows + kTokens);
  const StageBarriers barriers{bars, bars + kStages};
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      gpu::MbarrierInit(barriers.full + i, 1 + 32);
      gpu::MbarrierInit(barriers.empty + i, kConsumerWarps);
    }
    gpu::FenceMbarrierInit();
  }
  __syncthreads();
  if (warp == kConsumerWarps) {
    Produce(p, item, shared, barriers, x_rows, lane);
    return;
  }

  float d[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) d[i] = 0;
  const int group = warp / 4;
  Consume(d, static_cast<int>(p.w.tiles_k()), group, shared, barriers, lane);

  // d[4 i + j] lies as j of fragment i of 16 rows by 8 tokens: the same as an mma's.
  float(&fragments)[1][kTokens / 8][4] = reinterpret_cast<float(&)[1][kTokens / 8][4]>(d);
  const int first_row = warp * 16;
  const int64_t first_output = int64_t{blockIdx.y} * kRows;
  const int64_t end = WrittenOutputs(p.out, p.w.n);
  const int thread = static_cast<int>(threadIdx.x);
  gpu::NamedBarrierSync(1, kConsumers);  // the ring becomes the place of the outputs
  if (p.out.epilogue == ProductEpilogue::kGatedGelu) {
    StageSums<true>(fragments, first_row, 0, kRows / 2, BlockScales{}, shared, lane);
    gpu::NamedBarrierSync(1, kConsumers);
    StoreStaged<kTokens, kRows / 2, kConsumers>(shared, p.out, item.first, item.count,
                                                first_output / 2, end, thread);
  } else {
    StageSums<false>(fragments, first_row, 0, kRows, BlockScales{}, shared, lane);
    gpu::NamedBarrierSync(1, kConsumers);
    StoreStaged<kTokens, kRows, kConsumers>(shared, p.out, item.first, item.count, first_output,
                                            end, thread);
  }
#endif
}

}  // namespace

cudaError_t LaunchGroupedWgmma(const GroupedParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(GroupedItems(p.max_slots, p.experts, kTokens)),
                  static_cast<unsigned>((p.w.n + kRows - 1) / kRows));
  return gpu::Launch(GroupedWgmmaKernel,
                     {.name = "grouped_wgmma_product",
                      .grid = grid,
                      .block = dim3(kThreads),
                      .shared_bytes = size_t{kGroupedWgmmaSharedBytes},
                      .stream = stream},
                     p);
}

}  // namespace lapidary
