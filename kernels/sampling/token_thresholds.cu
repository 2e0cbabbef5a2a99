// The thresholds of rows without a short list, by histograms: two kernels a round.
//
// Histogram: several blocks share a row, read it in tiles of 4096 (from L2 after the first round: a
// row is at most 1 MiB) and add counts or weights to 2048 buckets in shared memory, as pairs of
// 32-bit words, since 64-bit atomics there are loops; then the buckets that are not empty to the
// row's own in device memory. 4 bytes and 20 (count) to 60 (mass) instructions a logit, and atomics
// that meet in the few buckets of usual logits: arithmetic is the limit. Whole numbers: no result
// depends on an order.
// Narrow: one block a row adds up the ranks' buckets (16 KiB each) and finds the one in which the
// target is reached, from above.
#include "kernels/sampling/block_scan.h"
#include "kernels/sampling/sample_cuda.h"
#include "kernels/sampling/shard_row.h"

namespace lapidary {
namespace {

constexpr int kThreads = kTileThreads;
constexpr int kBucketsPerThread = kThresholdBuckets / kThreads;

// The round's bits of a key.
GPU_DEVICE int ShiftOf(int round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }
GPU_DEVICE int BitsOf(int round) { return round == 2 ? 10 : 11; }

struct ThresholdParams {
  ThresholdStep t;
  bool by_mass;
  int round;
};

GPU_DEVICE bool Searches(const GpuThresholdRow& row, const SampleTask& task, bool by_mass,
                         int round) {
  if (round > 0) return row.searching != 0;
  return row.best_id >= 0 && (by_mass ? task.top_p < 1 : task.top_k > 0);
}

struct Buckets {
  uint32_t low[kThresholdBuckets], high[kThresholdBuckets];
};
GPU_DEVICE void Add(Buckets& buckets, uint32_t bucket, uint64_t weight) {
  const auto low = static_cast<uint32_t>(weight);
  const uint32_t before = atomicAdd(&buckets.low[bucket], low);
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before);
  if (high != 0) atomicAdd(&buckets.high[bucket], high);
}

// 4: left to itself, ptxas takes 32 registers on sm_80 and sm_100a and spills.
__global__ void __launch_bounds__(kThreads, 4)
    HistogramKernel(const __grid_constant__ ThresholdParams p) {
  GPU_SHARED(buckets, Buckets);
  const SampleStep& step = p.t.step;
  const int thread = static_cast<int>(threadIdx.x), index = static_cast<int>(blockIdx.y);
  const GpuThresholdRow& row = p.t.rows[index];
  const SampleTask& task = step.tasks[row.task];
  if (!Searches(row, task, p.by_mass, p.round)) return;
  for (int b = thread; b < kThresholdBuckets; b += kThreads) buckets.low[b] = buckets.high[b] = 0;
  __syncthreads();

  const int shift = ShiftOf(p.round), bits = BitsOf(p.round);
  const uint32_t mask = (1u << bits) - 1;
  // The first round looks at everything, NaN included; later ones at numbers with the prefix.
  const uint32_t least = max(row.key, p.round == 0 ? 0u : kKeyOfMinusInfinity);
  const float* logits = RowLogits(step, task);
  const int tiles = step.tiles();
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    float value[kTileItems];
    const int begin = tile * kTileColumns;
    LoadTile(value, logits, begin, step.columns);
#pragma unroll
    for (int j = 0; j < kTileItems; ++j) {
      const int column = begin + j / 4 * 4 * kThreads + thread * 4 + j % 4;
      const uint32_t key = TokenKey(value[j]);
      if (column >= step.columns || key < least) continue;
      if (p.round > 0 && key >> shift >> bits != row.prefix) continue;
      const uint64_t weight =
          p.by_mass ? static_cast<uint64_t>(TokenWeight(value[j], row.max, task.scale)) : 1;
      if (weight != 0) Add(buckets, key >> shift & mask, weight);
    }
  }
  __syncthreads();
  auto* own = reinterpret_cast<unsigned long long*>(p.t.histograms) +
              (int64_t{step.rank} * p.t.count + index) * kThresholdBuckets;
  for (int b = thread; b < kThresholdBuckets; b += kThreads) {
    const uint64_t sum = uint64_t{buckets.high[b]} << 32 | buckets.low[b];
    if (sum != 0) atomicAdd(own + b, static_cast<unsigned long long>(sum));
  }
}

// The bucket in which the target is reached, and what of the target it has to give; bucket 0 if no
// other reaches it.
struct Reached {
  int64_t target, mass;
  int32_t bucket;
};

// `sum`: this thread's buckets, ascending. The thread of the bucket fills *reached; a barrier
// follows.
GPU_DEVICE void FindBucket(const int64_t (&sum)[kBucketsPerThread], int64_t target, int64_t upto,
                           int64_t all, Reached* reached) {
  int64_t own = 0;
#pragma unroll
  for (int b = 0; b < kBucketsPerThread; ++b) own += sum[b];
  const int64_t above = all - upto;  // in the buckets of later threads
  const bool first = threadIdx.x == 0;
  if (above >= target || (above + own < target && !first)) return;
  int64_t left = target - above;
  bool found = false;
#pragma unroll
  for (int b = kBucketsPerThread - 1; b >= 0; --b) {
    if (found) continue;
    found = sum[b] >= left || (b == 0 && first);
    if (found) {
      *reached = {left, sum[b], static_cast<int32_t>(threadIdx.x) * kBucketsPerThread + b};
    } else {
      left -= sum[b];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    NarrowKernel(const __grid_constant__ ThresholdParams p) {
  GPU_SHARED(scan, BlockScan<kThreads>::Shared);
  GPU_SHARED(reached, Reached);
  const SampleStep& step = p.t.step;
  const int thread = static_cast<int>(threadIdx.x), index = static_cast<int>(blockIdx.x);
  GpuThresholdRow row = p.t.rows[index];
  const SampleTask& task = step.tasks[row.task];
  __syncthreads();  // all have read it; thread 0 writes it
  if (!Searches(row, task, p.by_mass, p.round)) {
    if (thread == 0) p.t.rows[index].searching = 0;
    return;
  }
  const int shift = ShiftOf(p.round), bits = BitsOf(p.round);
  if (p.round == 0) row.prefix = 0;
  int64_t sum[kBucketsPerThread] = {};
  for (int r = 0; r < step.ranks; ++r) {
    const int64_t* from = p.t.histograms + (int64_t{r} * p.t.count + index) * kThresholdBuckets +
                          thread * kBucketsPerThread;
#pragma unroll
    for (int b = 0; b < kBucketsPerThread; b += 2) {
      const ulonglong2 two = gpu::Load<ulonglong2>(from + b);
      sum[b] += static_cast<int64_t>(two.x);
      sum[b + 1] += static_cast<int64_t>(two.y);
    }
  }
  const int64_t weight = TokenWeight(ValueOfKey(row.key), row.max, task.scale);
  if (p.by_mass && row.equal > row.ties && row.key >> shift >> bits == row.prefix) {
    // A top-k before kept only some of the equal ones, all of which were counted.
    const auto bucket = static_cast<int>(row.key >> shift & ((1u << bits) - 1));
#pragma unroll
    for (int b = 0; b < kBucketsPerThread; ++b) {
      if (thread * kBucketsPerThread + b == bucket) sum[b] -= weight * (row.equal - row.ties);
    }
  }
  int64_t own = 0, all = 0;
#pragma unroll
  for (int b = 0; b < kBucketsPerThread; ++b) own += sum[b];
  const int64_t upto = BlockScan<kThreads>::Inclusive(own, scan, &all);
  if (p.round == 0) {
    row.target = p.by_mass ? TopPMass(task.top_p, all) : task.top_k;
    if (all < row.target || all == 0) {  // fewer than top_k, or nothing but infinities
      if (thread == 0) p.t.rows[index].searching = 0;
      return;
    }
  }
  FindBucket(sum, row.target, upto, all, &reached);
  __syncthreads();
  if (thread != 0) return;
  row.searching = p.round + 1 < kThresholdRounds ? 1 : 0;
  row.target = reached.target;
  row.prefix = row.prefix << bits | static_cast<uint32_t>(reached.bucket);
  if (row.searching == 0) {
    const bool same = p.by_mass && row.prefix == row.key;
    row.key = row.prefix;
    if (!p.by_mass) {
      row.equal = reached.mass;
      row.ties = row.target;
    } else {
      const int64_t w = max(int64_t{1}, TokenWeight(ValueOfKey(row.key), row.max, task.scale));
      if (!same) row.equal = reached.mass / w;
      row.ties = (row.target + w - 1) / w;
    }
  }
  p.t.rows[index] = row;
}

bool Bad(const ThresholdStep& t) {
  return t.count < 0 || t.count > 65535 || t.step.columns < 0 || t.step.tiles() > kMaxTiles ||
         t.step.ranks < 1 || t.step.ranks > kMaxSampleRanks;
}

}  // namespace

cudaError_t ClearHistograms(const ThresholdStep& t, cudaStream_t stream) {
  const int64_t numbers = int64_t{t.count} * kThresholdBuckets;
  return cudaMemsetAsync(t.histograms + t.step.rank * numbers, 0,
                         static_cast<size_t>(numbers) * sizeof(int64_t), stream);
}

cudaError_t LaunchThresholdHistogram(const ThresholdStep& t, bool by_mass, int round, int blocks,
                                     cudaStream_t stream) {
  if (Bad(t) || round < 0 || round >= kThresholdRounds || blocks < 1 || blocks > kMaxTiles) {
    return cudaErrorInvalidValue;
  }
  if (t.count == 0 || t.step.columns == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "threshold_histogram";
  config.grid =
      dim3(static_cast<unsigned>(min(blocks, t.step.tiles())), static_cast<unsigned>(t.count));
  config.block = dim3(kThreads);
  config.stream = stream;
  return gpu::Launch(HistogramKernel, config, ThresholdParams{t, by_mass, round});
}

cudaError_t LaunchThresholdNarrow(const ThresholdStep& t, bool by_mass, int round,
                                  cudaStream_t stream) {
  if (Bad(t) || round < 0 || round >= kThresholdRounds) return cudaErrorInvalidValue;
  if (t.count == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "threshold_narrow";
  config.grid = dim3(static_cast<unsigned>(t.count));
  config.block = dim3(kThreads);
  config.stream = stream;
  return gpu::Launch(NarrowKernel, config, ThresholdParams{t, by_mass, round});
}

}  // namespace lapidary
