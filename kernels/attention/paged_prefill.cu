// Attention of runs of tokens (prefill chunks). A block takes some tokens of a run and all query
// heads of one kv head: its rows are tokens times heads, so a page serves the whole group. It goes
// through the keys that any of its rows sees, in steps of 1, 2 or 4 pages:
//
//   scores   a warp has 16 rows and the step's keys (or half of them): S = Q K^T, masks, online
//            softmax in registers; the weights go to shared memory as bf16
//   outputs  a warp has up to 64 rows and a share of the value columns: O = O * factor + P V
//
// Two ways of cutting the same block, so that at head size 512 the 64 x 512 outputs fit into the
// registers of 8 warps (128 each), and a fragment of V read from shared memory meets 64 rows, not
// 16. It costs two block barriers a step and the weights' way through shared memory (an eighth of
// the tile's bytes).
//
// Per row, key and column 4 FLOP; per step of 64 keys at head size 256 (128 rows): 8.4 MFLOP, 32
// KiB of keys and values for each 16 pages-tokens: far above the balance of memory, so tensor cores
// limit, then shared memory's bandwidth: ldmatrix moves 20 bytes for 32 that the products could
// take in the scores, 16 for 32 in the outputs.
//
// Pages come in as in the decode kernel (internal/page_ring.h): one thread starts the bulk copies,
// a producer warp would have nothing else to do. e4m3 pages are widened once per step into a bf16
// tile; widening in registers would do it again for every 16 rows.
#include "kernels/attention/internal/prefill_tile.h"

namespace lapidary {
namespace {

struct PrefillParams {
  GpuAttentionParams attention;
  const AttentionRun* runs;
  const PrefillBlock* blocks;
};

// The end of the keys that tokens [first, first + count) of a run see; the same in all threads.
GPU_DEVICE int LastKey(const GpuAttentionParams& p, const AttentionRun& run, int first, int count) {
  if (p.spans == nullptr) return run.position + first + count;
  int end = 0;
  for (int i = threadIdx.x % 32; i < count; i += 32) {
    end = max(end, VisibleKeys(p, run, first + i).end);
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) end = max(end, __shfl_xor_sync(0xffffffffu, end, d));
  return end;
}

template <class P>
GPU_DEVICE void PrefillTile(const PrefillParams& params) {
  using Shape = typename P::Shape;
  const GpuAttentionParams& p = params.attention;
  const PrefillBlock block = params.blocks[blockIdx.x];
  const AttentionRun run = gpu::Load<AttentionRun>(params.runs + block.run);
  const int kv_head = blockIdx.y;
  const int first_head = p.group_begin[kv_head], group = p.group_begin[kv_head + 1] - first_head;
  const int first_row = blockIdx.z * P::kRows, row_count = block.count * group;
  if (first_row >= row_count) return;

  // Tokens of the run that have a row here, and the keys they see.
  const int first_index = block.first + first_row / group;
  const int last_index = block.first + (min(first_row + P::kRows, row_count) + group - 1) / group;
  const int begin = VisibleKeys(p, run, first_index).begin;
  const int end = LastKey(p, run, first_index, last_index - first_index);
  const int64_t first_token = int64_t{run.token} + block.first;
  // Steps begin at multiples of their size, so that a row goes through the same steps in whatever
  // block it stands: those that it sees nothing of change nothing.
  const int first_page = begin / (P::kPages * kPageTokens) * P::kPages;

  GPU_DYN_SMEM(uint8_t, shared_bytes);
  const typename P::Shared shared(shared_bytes);
  const PageSource source{.table = p.page_table + run.table,
                          .head = p.pool + p.layer_offset + int64_t{kv_head} * Shape::kHeadBytes,
                          .page_bytes = p.page_bytes,
                          .first_page = first_page,
                          .page_count = (end + kPageTokens - 1) / kPageTokens - first_page,
                          .begin = begin,
                          .end = end};
  typename P::Ring ring(source, shared.ring, shared.barriers);
  if constexpr (P::kBulk) __syncthreads();
  P::LoadQueries(p, first_token, first_head, group, first_row, row_count, shared.queries);
  if constexpr (P::kBulk) gpu::CpAsyncCommit();  // else in the group of the first step
#pragma unroll 1
  for (int s = 0; s < P::kStages - 1; ++s) ring.Load(s);
  typename P::Rows rows(p, run, block.first, group, first_row, row_count);
  typename P::Out out;
  if constexpr (P::kBulk) gpu::CpAsyncWait<0>();

  const int steps = ring.steps();
  for (int step = 0; step < steps; ++step) {
    ring.Wait(step);
    __syncthreads();  // the step's data; the last step's stage and weights are free
    ring.Load(step + P::kStages - 1);
    const uint8_t* stage = ring.Stage(step);
    const uint8_t* tiles = stage;
    if constexpr (Shape::kE4m3) {
      P::Widen(stage, shared.wide);
      __syncthreads();
      tiles = shared.wide;
    }
    typename P::Scores scores;
    P::Score(shared.queries, tiles, scores);
    P::Mask(scores, rows, ring.Position(step), stage);
    P::Weigh(scores, rows, stage, shared);
    __syncthreads();  // weights and factors
    out.Scale(shared.factors);
    out.AddValues(shared.weights, tiles);
  }
  gpu::CpAsyncWait<0>();  // empty groups

  // Sums of weights from all lanes and halves of the keys, their inverse as the last factor.
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float total = rows.total[h];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const int row = P::RowTile() * 16 + lane / 4 + 8 * h;
    if (lane % 4 == 0) gpu::Store(shared.exchange + P::KeyPart() * P::kRows + row, total);
  }
  __syncthreads();
  for (int row = threadIdx.x; row < P::kRows; row += P::kThreads) {
    float total = gpu::Load<float>(shared.exchange + row);
    if constexpr (P::kKeyParts == 2) total += gpu::Load<float>(shared.exchange + P::kRows + row);
    gpu::Store(shared.factors + row, 1.0f / total);
  }
  __syncthreads();
  out.Scale(shared.factors);
  out.Store(shared.queries);  // nobody reads the queries any more
  __syncthreads();
  P::WriteRows(p, first_token, first_head, group, first_row, row_count, shared.queries);
}

// Each chip gets the variant that its launcher starts; the others are empty there.
template <class P>
GPU_HOST_DEVICE constexpr bool BuiltHere() {
#if defined(__CUDA_ARCH__)
  constexpr int kShared = __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000 ? kSharedBytes90
                          : __CUDA_ARCH__ == 800                        ? kSharedBytes80
                                                                        : kSharedBytes89;
  return P::kBulk == (GPU_HAS_BULK_COPY != 0) &&
         P::kTiles == ChoosePrefillTiles(P::Shape::Layout(), kShared);
#else
  return true;
#endif
}

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1)
    PagedPrefillKernel(const __grid_constant__ PrefillParams p) {
  if constexpr (BuiltHere<P>()) PrefillTile<P>(p);
}

// What blocks of the chip may ask for, as one of the sizes that the kernels are built for.
int SharedClass(const Chip& chip) {
  const int large = chip.has_bulk_copy() ? kSharedBytes90 : kSharedBytes80;
  return chip.shared_bytes >= large ? large : kSharedBytes89;
}

}  // namespace

bool PrefillKernelTakes(const GpuKvLayout& layout, const Chip& chip) {
  return IsTunedShape(layout) && chip.shared_bytes >= kSharedBytes89;
}

int PrefillBlockTokens(const GpuKvLayout& layout, int largest_group, const Chip& chip) {
  const int rows = ChoosePrefillTiles(layout, SharedClass(chip)).rows;
  return std::max(1, rows / std::max(1, largest_group));
}

void CutPrefill(const std::vector<AttentionRun>& runs, int block_tokens,
                std::vector<PrefillBlock>* blocks) {
  blocks->clear();
  for (size_t i = 0; i < runs.size(); ++i) {
    for (int first = 0; first < runs[i].len; first += block_tokens) {
      blocks->push_back({.run = static_cast<int32_t>(i),
                         .first = first,
                         .count = std::min(block_tokens, runs[i].len - first)});
    }
  }
  const auto context = [&](const PrefillBlock& b) {
    return int64_t{runs[b.run].position} + b.first + b.count;
  };
  std::stable_sort(
      blocks->begin(), blocks->end(),
      [&](const PrefillBlock& a, const PrefillBlock& b) { return context(a) > context(b); });
}

cudaError_t LaunchPagedPrefill(const GpuAttentionParams& p, const AttentionRun* runs,
                               const PrefillBlock* blocks, int block_count, const Chip& chip,
                               cudaStream_t stream) {
  const int group =
      p.kv_heads > 0 && p.kv_heads <= p.kMaxKvHeads ? LargestGroup(p.group_begin, p.kv_heads) : 0;
  if (block_count < 0 || group <= 0 || !PrefillKernelTakes(p.layout, chip) ||
      p.out_stride % 8 != 0 || p.page_bytes % 16 != 0 || p.layer_offset % 16 != 0) {
    return cudaErrorInvalidValue;
  }
  if (block_count == 0) return cudaSuccess;
  const PrefillParams params{.attention = p, .runs = runs, .blocks = blocks};
  const auto launch = [&]<class P>() {
    const int tokens = std::max(1, P::kRows / group);
    const gpu::LaunchConfig config{
        .name = "paged_prefill",
        .grid = dim3(static_cast<unsigned>(block_count), static_cast<unsigned>(p.kv_heads),
                     static_cast<unsigned>((tokens * group + P::kRows - 1) / P::kRows)),
        .block = dim3(P::kThreads),
        .shared_bytes = static_cast<size_t>(PrefillSharedBytes(P::Shape::Layout(), P::kTiles)),
        .stream = stream};
    return gpu::Launch(PagedPrefillKernel<P>, config, params);
  };
  return WithTunedShape(p.layout, [&]<class Shape>() {
    constexpr GpuKvLayout kLayout = Shape::Layout();
    constexpr PrefillTiles kSmall = ChoosePrefillTiles(kLayout, kSharedBytes89);
    constexpr PrefillTiles k80 = ChoosePrefillTiles(kLayout, kSharedBytes80);
    constexpr PrefillTiles k90 = ChoosePrefillTiles(kLayout, kSharedBytes90);
    const bool small = SharedClass(chip) == kSharedBytes89;
    if (chip.has_bulk_copy()) {
      return small ? launch.template operator()<Prefill<Shape, kSmall.rows, kSmall.pages,
                                                        kSmall.stages, kSmall.warps, true>>()
                   : launch.template
                     operator()<Prefill<Shape, k90.rows, k90.pages, k90.stages, k90.warps, true>>();
    }
    return small ? launch.template operator()<Prefill<Shape, kSmall.rows, kSmall.pages,
                                                      kSmall.stages, kSmall.warps, false>>()
                 : launch.template
                   operator()<Prefill<Shape, k80.rows, k80.pages, k80.stages, k80.warps, false>>();
  });
}

}  // namespace lapidary
