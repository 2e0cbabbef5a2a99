// Attention for any head size, group, page format and run: a warp per row (a token and one query
// head), no tensor cores, no asynchronous copies. The second opinion on the tuned kernels, and what
// awkward head sizes run on.
//
// 32 keys at a time: lane i scores key i alone, reading its row in chunks of 16 bytes against the
// query in shared memory; then the lanes share the value columns, two to a lane of every 64, and
// each key's weight is passed around. Every row of a group reads the pages for itself: with 8 query
// heads to a kv head eight times the tuned kernels' traffic, from L2 at best, and about 6
// instructions for each element: for correctness, not for speed.
#include "kernels/attention/internal/page_ring.h"
#include "kernels/attention/internal/visible_keys.h"

namespace lapidary {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 1024;
constexpr int kPairs = kMaxHeadDim / 64;  // column pairs of a lane

struct GenericParams {
  GpuAttentionParams attention;
  const AttentionRun* runs;
  int run_count;
  int64_t tokens;
};

// The run that a token belongs to; -1: none. All lanes of a warp.
GPU_DEVICE int FindRun(const AttentionRun* runs, int run_count, int64_t token) {
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < run_count; first += 32) {
    bool found = false;
    if (first + lane < run_count) {
      const AttentionRun run = gpu::Load<AttentionRun>(runs + first + lane);
      found = token >= run.token && token < int64_t{run.token} + run.len;
    }
    const uint32_t votes = __ballot_sync(0xffffffffu, found);
    if (votes != 0) return first + __ffs(static_cast<int>(votes)) - 1;
  }
  return -1;
}

// Two codes in the low 16 bits, in order.
GPU_DEVICE float2 NarrowPair(uint32_t codes) {
  const uint32_t pair = WidenOdd((codes & 0xff) << 8 | (codes & 0xff00) << 16);
  return make_float2(gpu::Bf16Low(pair), gpu::Bf16High(pair));
}

// Query (fp32, in shared memory) times the key of row `token` of a tile, codes not scaled.
GPU_DEVICE float Score(const GpuKvLayout& layout, const uint8_t* tile, int token,
                       const float* query) {
  float sum = 0;
  const int chunk_columns = 16 / layout.element_bytes();
  for (int block = 0; block < layout.score_blocks(); ++block) {
    const int first = layout.ScoreBlock(block) / chunk_columns;
    for (int i = 0; i < 16 / chunk_columns; ++i) {
      const uint4 v = gpu::Load<uint4>(tile + layout.ChunkOffset(token, first + i));
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      const float* q = query + 16 * block + i * chunk_columns;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if (layout.type == GpuKvType::kBf16) {
          sum += q[2 * w] * gpu::Bf16Low(words[w]) + q[2 * w + 1] * gpu::Bf16High(words[w]);
        } else {
          const float2 low = NarrowPair(words[w]), high = NarrowPair(words[w] >> 16);
          sum += q[4 * w] * low.x + q[4 * w + 1] * low.y;
          sum += q[4 * w + 2] * high.x + q[4 * w + 3] * high.y;
        }
      }
    }
  }
  return sum;
}

// Columns `column` and column + 1 (even) of the value of row `token`, codes not scaled.
GPU_DEVICE float2 Values(const GpuKvLayout& layout, const uint8_t* tile, int token, int column) {
  const int byte = column * layout.element_bytes();
  const uint8_t* at = tile + layout.ChunkOffset(token, byte / 16) + byte % 16;
  if (layout.type == GpuKvType::kE4m3) return NarrowPair(gpu::Load<uint16_t>(at));
  const uint32_t pair = gpu::Load<uint32_t>(at);
  return make_float2(gpu::Bf16Low(pair), gpu::Bf16High(pair));
}

GPU_DEVICE float ScaleAt(const GpuKvLayout& layout, const uint8_t* tile, int index) {
  return layout.type == GpuKvType::kBf16 ? 1.0f
                                         : gpu::Load<float>(tile + layout.tile_bytes() + 4 * index);
}

__global__ void __launch_bounds__(kWarps * 32)
    PagedGenericKernel(const __grid_constant__ GenericParams params) {
  const GpuAttentionParams& p = params.attention;
  const GpuKvLayout& layout = p.layout;
  const int lane = threadIdx.x % 32, head = blockIdx.y;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (token >= params.tokens) return;
  const int run_index = FindRun(params.runs, params.run_count, token);
  if (run_index < 0) return;
  const AttentionRun run = gpu::Load<AttentionRun>(params.runs + run_index);
  const KeyRange keys = VisibleKeys(p, run, static_cast<int>(token - run.token));
  int kv_head = 0;
  while (p.group_begin[kv_head + 1] <= head) ++kv_head;

  const int columns = layout.score_columns();
  GPU_DYN_SMEM(float, queries);
  float* query = queries + threadIdx.x / 32 * columns;
  const __nv_bfloat16* packed = p.query + (token * p.q_heads + head) * columns;
  for (int c = lane; c < columns; c += 32) {
    query[c] = gpu::Bf16Low(gpu::Load<uint16_t>(packed + c));
  }
  __syncwarp();

  const auto tile_of = [&](int position) {
    const int64_t page = p.page_table[run.table + position / kPageTokens];
    return p.pool + page * p.page_bytes + p.layer_offset + int64_t{kv_head} * layout.head_bytes();
  };
  float largest = -INFINITY, total = 0;
  float o[kPairs][2] = {};
  for (int first = keys.begin; first < keys.end; first += 32) {
    const int position = first + lane;
    const bool exists = position < keys.end;
    float score = -INFINITY, value_scale = 0;
    if (exists) {
      const uint8_t* tile = tile_of(position);
      const int row = position % kPageTokens;
      score = Score(layout, tile, row, query) * ScaleAt(layout, tile, row) * kLog2E;
      value_scale = ScaleAt(layout, tile, kPageTokens + row);
    }
    const float most = fmaxf(largest, gpu::WarpMax(score));
    const float shrink = gpu::Exp2Approx(largest - most);
    const float weight = gpu::Exp2Approx(score - most);
    largest = most;
    total = total * shrink + gpu::WarpSum(weight);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      o[i][0] *= shrink;
      o[i][1] *= shrink;
    }
    // As the tuned kernels round.
    const float rounded = gpu::Bf16Low(gpu::PackBf16(weight * value_scale, 0));
    const int count = min(keys.end - first, 32);
    for (int k = 0; k < count; ++k) {
      const float w = __shfl_sync(0xffffffffu, rounded, k);
      const uint8_t* tile = tile_of(first + k);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int column = 2 * lane + 64 * i;
        if (column < layout.head_dim) {
          const float2 v = Values(layout, tile, (first + k) % kPageTokens, column);
          o[i][0] += w * v.x;
          o[i][1] += w * v.y;
        }
      }
    }
  }

  const float inverse = 1.0f / total;
  __nv_bfloat16* out = p.out + token * p.out_stride + int64_t{head} * layout.head_dim;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int column = 2 * lane + 64 * i;
    if (column < layout.head_dim) {
      const uint32_t pair = gpu::PackBf16(o[i][0] * inverse, o[i][1] * inverse);
      gpu::Store(out + column, static_cast<uint16_t>(pair));
      gpu::Store(out + column + 1, static_cast<uint16_t>(pair >> 16));
    }
  }
}

}  // namespace

cudaError_t LaunchPagedGeneric(const GpuAttentionParams& p, const AttentionRun* runs, int run_count,
                               int64_t tokens, cudaStream_t stream) {
  const int d = p.layout.head_dim;
  if (d <= 0 || d % 2 != 0 || d > kMaxHeadDim || p.kv_heads <= 0 || p.kv_heads > p.kMaxKvHeads ||
      p.q_heads <= 0 || p.group_begin[p.kv_heads] != p.q_heads || run_count < 0 || tokens < 0 ||
      p.layout.format == KvFormat::kSingle || p.page_bytes % 16 != 0 || p.layer_offset % 16 != 0) {
    return cudaErrorInvalidValue;
  }
  if (tokens == 0 || run_count == 0) return cudaSuccess;
  const GenericParams params{
      .attention = p, .runs = runs, .run_count = run_count, .tokens = tokens};
  const gpu::LaunchConfig config{
      .name = "paged_generic",
      .grid = dim3(static_cast<unsigned>((tokens + kWarps - 1) / kWarps),
                   static_cast<unsigned>(p.q_heads)),
      .block = dim3(kWarps * 32),
      .shared_bytes = static_cast<size_t>(kWarps * p.layout.score_columns()) * sizeof(float),
      .stream = stream};
  return gpu::Launch(PagedGenericKernel, config, params);
}

}  // namespace lapidary
