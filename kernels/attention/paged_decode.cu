// Attention of one new token per sequence. A block takes one kv head of one sequence, or a share of
// its context (a split); four warps work on the same pages.
//
// Tokens are the M of the tensor-core products and the query heads of the group their N:
//
//   S^T [16 tokens, 8 heads] = K [16, 16] q^T [16, 8]     summed over the score's blocks of 16
//   O^T [16 columns, 8 heads] = V^T [16, 16] P^T [16, 8]  summed over pages
//
// so nothing is padded to 16 heads, and P goes from accumulator to operand with one movmatrix per
// 8 tokens. The warps share a step (about 16 KiB: 1, 2 or 4 pages) twice over: first each computes
// the scores of one page, or of part of the columns of one page, and leaves them in shared memory;
// after a block barrier each sums the parts, computes the same softmax, and adds its quarter of the
// value columns. So accumulators stay small (64 registers for 16 heads of 512) and a page is read
// from shared memory once for K and once for V.
//
// Bytes per page and kv head: the tile (256: 16 KiB; 512 folded: 20 KiB; half in e4m3). FLOPs: 4 *
// 8
// * 16 * columns, some 8 for each byte with 8 heads: memory-bound everywhere, far from the tensor
// cores' limit. In flight are 40 to 64 KiB per block, more than any chip's share of bandwidth times
// latency per processor (20 to 45 KiB).
//
// e4m3 is widened in registers. ldmatrix hands out 16-bit units, here two codes; the columns of a
// product are therefore taken in the order that makes codes 0 and 2 of a register one bf16 pair and
// codes 1 and 3 the other: free, since the query is read in the same order, and for V it only says
// which output column a row of the accumulator is.
#include "kernels/attention/internal/decode_tile.h"

namespace lapidary {
namespace {

template <class D>
GPU_DEVICE void DecodeBlock(const DecodeParams& p) {
  using Shape = typename D::Shape;
  using Ring = typename D::Ring;
  const GpuAttentionParams& a = p.attention;
  const int row = blockIdx.x, kv_head = blockIdx.y, split = blockIdx.z;
  const AttentionRun run = gpu::Load<AttentionRun>(p.runs + row);
  if (run.len == 0) return;
  const int first_head = a.group_begin[kv_head], group = a.group_begin[kv_head + 1] - first_head;
  if (group == 0) return;
  const DecodeRange range = RangeOf(run.position, a.window, split, p.splits);
  if (range.page_count <= 0) {
    if (static_cast<int>(threadIdx.x) < group) {
      gpu::Store(p.stats + (int64_t{row} * a.q_heads + first_head + threadIdx.x) * p.splits + split,
                 make_float2(-INFINITY, 0));
    }
    return;
  }

  GPU_DYN_SMEM(uint8_t, shared);
  uint8_t* barriers = shared + D::kStages * Ring::kStageBytes;
  float4* parts = reinterpret_cast<float4*>(barriers + 128);
  const PageSource source{.table = a.page_table + run.table,
                          .head = a.pool + a.layer_offset + int64_t{kv_head} * Shape::kHeadBytes,
                          .page_bytes = a.page_bytes,
                          .first_page = range.first_page,
                          .page_count = range.page_count,
                          .begin = range.begin,
                          .end = range.end};
  Ring ring(source, shared, barriers);
  if constexpr (D::kBulk) __syncthreads();
#pragma unroll 1
  for (int s = 0; s < D::kStages - 1; ++s) ring.Load(s);
  typename D::Query query;
  query.Load(a.query + (int64_t{run.token} * a.q_heads + first_head) * Shape::kScoreColumns, group);
  const typename D::ScoreRows score_rows;
  typename D::Sums sums;

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int steps = ring.steps();
  for (int step = 0; step < steps; ++step) {
    ring.Wait(step);
    // Copies of other threads, and rows of zeros, need a barrier; a bulk copy's data do not.
    if (!D::kBulk || ring.Partial(step)) __syncthreads();
    const uint8_t* stage = ring.Stage(step);
    float4* step_parts = parts + step % 2 * D::kTiles * kDecodeThreads;
    D::Score(stage + warp / D::kParts * Shape::kHeadBytes, score_rows, query,
             step_parts + warp * D::kTiles * 32 + lane);
    __syncthreads();
    // Everybody has left the last step's stage.
    ring.Load(step + D::kStages - 1);
    typename D::Scores scores;
    D::SumParts(step_parts + lane, scores);
    sums.Weigh(scores, stage, ring.Position(step), range.begin, range.end);
    sums.AddValues(scores, stage);
  }
  gpu::CpAsyncWait<0>();  // empty groups
  __syncthreads();
  D::Finish(p, row, run.token, sums, reinterpret_cast<float*>(shared),
            reinterpret_cast<float2*>(parts));
}

// Not every variant is built for every chip: copies of 16 bytes where there are no bulk copies.
template <class D>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    PagedDecodeKernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__)
  if constexpr (D::kBulk == (GPU_HAS_BULK_COPY != 0)) DecodeBlock<D>(p);
#else
  DecodeBlock<D>(p);
#endif
}

// out = sum of the splits' partial sums, each at its own maximum. A block of one head of one row;
// every warp computes the factors, lane s those of splits s and s + 32.
__global__ void __launch_bounds__(kDecodeThreads)
    CombineSplitsKernel(const __grid_constant__ DecodeParams p) {
  static_assert(kMaxDecodeSplits == 64);
  const GpuAttentionParams& a = p.attention;
  const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
  const AttentionRun run = gpu::Load<AttentionRun>(p.runs + row);
  if (run.len == 0) return;
  const int64_t first = (int64_t{row} * a.q_heads + head) * p.splits;
  float2 stats[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int split = lane + 32 * i;
    stats[i] =
        split < p.splits ? gpu::Load<float2>(p.stats + first + split) : make_float2(-INFINITY, 0);
  }
  const float most = gpu::WarpMax(fmaxf(stats[0].x, stats[1].x));
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) factor[i] = gpu::Exp2Approx(stats[i].x - most);
  const float total = gpu::WarpSum(factor[0] * stats[0].y + factor[1] * stats[1].y);
  const float inverse = 1.0f / total;

  const int d = a.layout.head_dim;
  for (int column = threadIdx.x / 32 * 128; column < d; column += kDecodeThreads * 4) {
    const int c = column + lane * 4;
    float o[4] = {};
    for (int split = 0; split < p.splits; ++split) {
      const float f = __shfl_sync(0xffffffffu, split < 32 ? factor[0] : factor[1], split % 32);
      if (f == 0 || c >= d) continue;  // nothing, and perhaps nobody wrote it
      const float4 v = gpu::Load<float4>(p.partial + (first + split) * d + c);
      o[0] += f * v.x, o[1] += f * v.y, o[2] += f * v.z, o[3] += f * v.w;
    }
    if (c >= d) continue;
    gpu::Store(a.out + run.token * a.out_stride + int64_t{head} * d + c,
               make_uint2(gpu::PackBf16(o[0] * inverse, o[1] * inverse),
                          gpu::PackBf16(o[2] * inverse, o[3] * inverse)));
  }
}

}  // namespace

bool DecodeKernelTakes(const GpuKvLayout& layout, int largest_group, const Chip& chip) {
  return IsTunedShape(layout) && largest_group <= kMaxDecodeGroup &&
         DecodeSharedBytes(layout, largest_group) <= chip.shared_bytes;
}

DecodePlan PlanDecode(const GpuAttentionParams& p, int rows, const Chip& chip) {
  DecodePlan plan;
  plan.splits = DecodeSplits(int64_t{rows} * p.kv_heads, p.window, chip.processors);
  if (plan.splits > 1) {
    plan.workspace_bytes =
        int64_t{rows} * p.q_heads * plan.splits * (int64_t{p.layout.head_dim} * 4 + 8);
  }
  return plan;
}

cudaError_t LaunchPagedDecode(const GpuAttentionParams& p, const AttentionRun* runs, int rows,
                              const DecodePlan& plan, void* workspace, const Chip& chip,
                              cudaStream_t stream) {
  const int group =
      p.kv_heads > 0 && p.kv_heads <= p.kMaxKvHeads ? LargestGroup(p.group_begin, p.kv_heads) : 0;
  if (rows < 0 || group <= 0 || !DecodeKernelTakes(p.layout, group, chip) || plan.splits < 1 ||
      plan.splits > kMaxDecodeSplits || (plan.splits > 1 && workspace == nullptr) ||
      p.out_stride % 4 != 0 || p.page_bytes % 16 != 0 || p.layer_offset % 16 != 0) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0) return cudaSuccess;
  DecodeParams params{.attention = p, .runs = runs, .splits = plan.splits};
  params.partial = static_cast<float*>(workspace);
  params.stats = reinterpret_cast<float2*>(params.partial + int64_t{rows} * p.q_heads *
                                                                plan.splits * p.layout.head_dim);
  gpu::LaunchConfig config{
      .name = "paged_decode",
      .grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(p.kv_heads),
                   static_cast<unsigned>(plan.splits)),
      .block = dim3(kDecodeThreads),
      .shared_bytes = static_cast<size_t>(DecodeSharedBytes(p.layout, group)),
      .stream = stream};
  const cudaError_t launched = WithTunedShape(p.layout, [&]<class Shape>() {
    if (chip.has_bulk_copy()) {
      return group <= 8 ? gpu::Launch(PagedDecodeKernel<Decode<Shape, 1, true>>, config, params)
                        : gpu::Launch(PagedDecodeKernel<Decode<Shape, 2, true>>, config, params);
    }
    return group <= 8 ? gpu::Launch(PagedDecodeKernel<Decode<Shape, 1, false>>, config, params)
                      : gpu::Launch(PagedDecodeKernel<Decode<Shape, 2, false>>, config, params);
  });
  if (launched != cudaSuccess || plan.splits == 1) return launched;
  config.name = "combine_splits";
  config.grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(p.q_heads));
  config.shared_bytes = 0;
  return gpu::Launch(CombineSplitsKernel, config, params);
}

}  // namespace lapidary
