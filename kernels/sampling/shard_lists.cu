// The best tokens of this rank's columns, and their norm: two kernels.
//
// Tiles: a block reads 4096 logits of a row once into registers, 16 a thread (all 64 tiles of a row
// of 262,144 at once, so one greedy row has 1 MiB on its way), takes maximum, sum and best tokens
// from there, and writes count * 8 bytes. 4 bytes a logit; instructions for each: about 3 (greedy),
// 8 (a list) and 8 (a norm), so memory is the limit, and latency with few rows.
// Lists: a block reads the tiles' lists of one job, 8 bytes an entry, and leaves the best of them
// in the message. Tiles are in ascending order and each list has equal keys in order of columns, so
// the place in the joint list breaks ties as ids do.
#include "kernels/sampling/block_best.h"
#include "kernels/sampling/sample_cuda.h"
#include "kernels/sampling/shard_row.h"

namespace lapidary {
namespace {

// A block of lists: 64 tiles of 64 tokens, or of 256.
constexpr int kFewThreads = 256, kFewItems = 16;
constexpr int kManyThreads = 512, kManyItems = 32;
static_assert(kManyThreads * kManyItems == kMaxTiles * kMaxListed);

struct JobsParams {
  SampleStep step;
  int first_job;
};

// Maximum and sum of exp of a tile; a tile of -inf and NaN keeps the NaN.
GPU_DEVICE TileNorm NormOfTile(const float (&value)[kTileItems]) {
  constexpr int kWarps = kTileThreads / 32;
  GPU_SHARED(maxima, float[kWarps]);
  GPU_SHARED(sums, float[kWarps]);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const float nothing = ValueOfKey(kKeyOfMinusInfinity);
  float largest = nothing;
#pragma unroll
  for (int j = 0; j < kTileItems; ++j) largest = fmaxf(largest, value[j]);
  largest = gpu::WarpMax(largest);
  if (lane == 0) maxima[warp] = largest;
  __syncthreads();
  TileNorm norm;
  norm.max = gpu::WarpMax(lane < kWarps ? maxima[lane] : nothing);
  const float zero = norm.max == nothing ? 0.0f : norm.max;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kTileItems; ++j) sum += ExpOfNegative(value[j] - zero);
  sum = gpu::WarpSum(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  norm.sum = gpu::WarpSum(lane < kWarps ? sums[lane] : 0.0f);
  return norm;
}

__global__ void __launch_bounds__(kTileThreads, 3)
    ShardTilesKernel(const __grid_constant__ JobsParams p) {
  using Best = BlockBest<kTileThreads, kTileItems>;
  GPU_SHARED(shared, Best::Shared);
  const SampleStep& step = p.step;
  const int tile = static_cast<int>(blockIdx.x), tiles = static_cast<int>(gridDim.x);
  const int job_index = p.first_job + static_cast<int>(blockIdx.y);
  const ShardJob job = step.jobs[job_index];
  const int begin = tile * kTileColumns;
  float value[kTileItems];
  LoadTile(value, RowLogits(step, step.tasks[job.task]), begin, step.columns);
  if (job.wants_norm) {
    const TileNorm norm = NormOfTile(value);
    if (threadIdx.x == 0) step.norms[int64_t{job_index} * tiles + tile] = norm;
  }
  if (job.count == 0) return;
  uint32_t key[kTileItems];
#pragma unroll
  for (int j = 0; j < kTileItems; ++j) key[j] = TokenKey(value[j]);
  const int found = Best::Select(key, job.count, shared);
  TileEntry* list = step.lists + job.list_at + int64_t{tile} * job.count;
  for (int i = static_cast<int>(threadIdx.x); i < job.count; i += kTileThreads) {
    uint2 entry{0, 0};
    if (i < found) {
      entry.x = Best::KeyOf(shared.best[i]);
      entry.y = static_cast<uint32_t>(begin + Best::IndexOf(shared.best[i]));
    }
    gpu::Store(list + i, entry);
  }
}

// One warp: the tiles' norms of a job, in one order.
GPU_DEVICE ShardSummary Summarize(const SampleStep& step, int job_index, int tiles) {
  const int lane = static_cast<int>(threadIdx.x);
  const TileNorm* norms = step.norms + int64_t{job_index} * tiles;
  const float nothing = ValueOfKey(kKeyOfMinusInfinity);
  float max = nothing, sum = 0;
  for (int t = lane; t < tiles; t += 32) max = fmaxf(max, norms[t].max);
  max = gpu::WarpMax(max);
  for (int t = lane; t < tiles; t += 32) {
    // A tile of -inf and NaN alone has a sum of 0 or NaN.
    const float scale = norms[t].max == nothing ? 1.0f : ExpOfNegative(norms[t].max - max);
    sum += norms[t].sum * scale;
  }
  ShardSummary summary;
  summary.max = max;
  summary.sum = gpu::WarpSum(sum);
  return summary;
}

template <int kThreads, int kItems>
__global__ void __launch_bounds__(kThreads, 1)
    ShardListsKernel(const __grid_constant__ JobsParams p) {
  using Best = BlockBest<kThreads, kItems>;
  GPU_SHARED(shared, typename Best::Shared);
  const SampleStep& step = p.step;
  const int job_index = p.first_job + static_cast<int>(blockIdx.x);
  const ShardJob job = step.jobs[job_index];
  const SampleTask& task = step.tasks[job.task];
  const int tiles = step.tiles();
  unsigned char* message = step.messages + step.rank * step.message_bytes;
  if (job.wants_norm && threadIdx.x < 32) {
    ShardSummary summary = Summarize(step, job_index, tiles);
    const int column = task.scored_id - step.first_id;
    if (task.scored_id >= 0 && column >= 0 && column < step.columns) {
      summary.scored = RowLogits(step, task)[column];  // no norm is wanted of edited logits
      summary.has_scored = 1;
    }
    if (threadIdx.x == 0) {
      gpu::Store(reinterpret_cast<ShardSummary*>(message) + job.task,
                 uint4{FloatBits(summary.max), FloatBits(summary.sum), FloatBits(summary.scored),
                       static_cast<uint32_t>(summary.has_scored)});
    }
  }
  if (job.count == 0) return;
  const TileEntry* lists = step.lists + job.list_at;
  const int entries = tiles * job.count;
  uint32_t key[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    const int i = Best::Index(j);
    key[j] = i < entries ? lists[i].key : 0;
  }
  const int found = Best::Select(key, job.count, shared);
  auto* out =
      reinterpret_cast<ShardEntry*>(message + step.rows * sizeof(ShardSummary)) + job.message_at;
  for (int i = static_cast<int>(threadIdx.x); i < job.count; i += kThreads) {
    uint4 entry{0, 0xffffffffu, 0, 0};
    if (i < found) {
      const uint32_t best = Best::KeyOf(shared.best[i]);
      const int column = lists[Best::IndexOf(shared.best[i])].column;
      entry.x = best;
      entry.y = static_cast<uint32_t>(step.first_id + column);
      const float value = ValueOfKey(best);
      entry.z = FloatBits(job.edited ? RawLogit(step, task, job.task, column, value) : value);
    }
    gpu::Store(out + i, entry);
  }
}

}  // namespace

cudaError_t LaunchShardTiles(const SampleStep& step, int first, int last, cudaStream_t stream) {
  if (first < 0 || last < first || step.columns < 0 || step.tiles() > kMaxTiles) {
    return cudaErrorInvalidValue;
  }
  if (first == last || step.columns == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "shard_tiles";
  config.grid = dim3(static_cast<unsigned>(step.tiles()), static_cast<unsigned>(last - first));
  config.block = dim3(kTileThreads);
  config.stream = stream;
  JobsParams p;
  p.step = step;
  p.first_job = first;
  return gpu::Launch(ShardTilesKernel, config, p);
}

cudaError_t LaunchShardLists(const SampleStep& step, int first, int last, int most,
                             cudaStream_t stream) {
  if (first < 0 || last < first || most < 0 || most > kMaxListed || step.columns < 0 ||
      step.tiles() > kMaxTiles) {
    return cudaErrorInvalidValue;
  }
  if (first == last) return cudaSuccess;
  const bool few = step.tiles() * most <= kFewThreads * kFewItems;
  gpu::LaunchConfig config;
  config.name = "shard_lists";
  config.grid = dim3(static_cast<unsigned>(last - first));
  config.block = dim3(few ? kFewThreads : kManyThreads);
  config.stream = stream;
  JobsParams p;
  p.step = step;
  p.first_job = first;
  if (few) return gpu::Launch(ShardListsKernel<kFewThreads, kFewItems>, config, p);
  return gpu::Launch(ShardListsKernel<kManyThreads, kManyItems>, config, p);
}

}  // namespace lapidary
