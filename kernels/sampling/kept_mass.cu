// The token of a row whose threshold is known: three kernels.
//
// Kept mass: a block reads a tile of 4096 logits (4 bytes and about 30 instructions each) and says
// how much of it is kept; a row's tiles add up to what this shard keeps. Find: one block a row; the
// rank in whose shard the random point falls looks through its tiles' masses, then at the one tile.
// Finish: what was found becomes the row's result.
#include "kernels/sampling/block_scan.h"
#include "kernels/sampling/row_score.h"
#include "kernels/sampling/sample_cuda.h"
#include "kernels/sampling/shard_row.h"

namespace lapidary {
namespace {

constexpr int kThreads = kTileThreads;
using Scan = BlockScan<kThreads>;

// The weight of those whose key is the threshold's.
GPU_DEVICE int64_t TieWeight(const GpuThresholdRow& row, const SampleTask& task) {
  const int64_t weight = TokenWeight(ValueOfKey(row.key), row.max, task.scale);
  return weight >= task.min_weight ? weight : 0;
}
GPU_DEVICE int64_t Between(int64_t v, int64_t least, int64_t most) {
  return v < least ? least : v < most ? v : most;
}

GPU_DEVICE int64_t WeightAbove(float value, uint32_t key, const GpuThresholdRow& row,
                               const SampleTask& task) {
  if (key <= row.key) return 0;
  const int64_t weight = TokenWeight(value, row.max, task.scale);
  return weight >= task.min_weight ? weight : 0;
}

__global__ void __launch_bounds__(kThreads)
    KeptMassKernel(const __grid_constant__ ThresholdStep t) {
  GPU_SHARED(above_scan, Scan::Shared);
  GPU_SHARED(equal_scan, Scan::Shared);
  const SampleStep& step = t.step;
  const int tile = static_cast<int>(blockIdx.x), index = static_cast<int>(blockIdx.y);
  const GpuThresholdRow row = t.rows[index];
  const SampleTask& task = step.tasks[row.task];
  float value[kTileItems];
  LoadTile(value, RowLogits(step, task), tile * kTileColumns, step.columns);
  ShardKept own;
#pragma unroll
  for (int j = 0; j < kTileItems; ++j) {
    const uint32_t key = TokenKey(value[j]);
    own.above += WeightAbove(value[j], key, row, task);
    own.equal += key == row.key && key > kKeyOfMinusInfinity ? 1 : 0;  // others weigh nothing
  }
  ShardKept sum;
  Scan::Inclusive(own.above, above_scan, &sum.above);
  Scan::Inclusive(own.equal, equal_scan, &sum.equal);
  if (threadIdx.x != 0) return;
  t.tile_kept[int64_t{index} * gridDim.x + tile] = sum;
  ShardKept* shard = t.kept + int64_t{step.rank} * t.count + index;
  if (sum.above != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&shard->above),
              static_cast<unsigned long long>(sum.above));
  }
  if (sum.equal != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&shard->equal),
              static_cast<unsigned long long>(sum.equal));
  }
}

// Where the random point falls: a rank, or a tile of one; and what stands before the place.
struct Place {
  int64_t point = 0;        // from the place's beginning
  int64_t ties_before = 0;  // equal ones before it
  int32_t index = -1;       // -1: there is nothing to fall into
};

// The place among `count` parts in order, the random point being `place.point` from their
// beginning.
GPU_DEVICE Place FindPart(const ShardKept* parts, int64_t stride, int count, int64_t ties,
                          int64_t tie_weight, Place place) {
  for (int i = 0; i < count; ++i) {
    const ShardKept part = parts[i * stride];
    const int64_t mass = part.above + Between(ties - place.ties_before, 0, part.equal) * tie_weight;
    if (place.point < mass) {
      place.index = i;
      return place;
    }
    place.point -= mass;
    place.ties_before += part.equal;
  }
  return place;
}

GPU_DEVICE Place FindRank(const ThresholdStep& t, int index, const GpuThresholdRow& row,
                          const SampleTask& task, int64_t tie_weight) {
  int64_t mass = 0, ties_before = 0;
  for (int r = 0; r < t.step.ranks; ++r) {
    const ShardKept& kept = t.kept[int64_t{r} * t.count + index];
    mass += kept.above + Between(row.ties - ties_before, 0, kept.equal) * tie_weight;
    ties_before += kept.equal;
  }
  Place place;
  if (mass == 0) return place;
  place.point = static_cast<int64_t>(__umul64hi(task.bits, static_cast<unsigned long long>(mass)));
  return FindPart(t.kept + index, t.count, t.step.ranks, row.ties, tie_weight, place);
}

__global__ void __launch_bounds__(kThreads, 4)
    FindTokenKernel(const __grid_constant__ ThresholdStep t) {
  GPU_SHARED(tile_kept, ShardKept[kMaxTiles]);
  GPU_SHARED(place, Place);
  GPU_SHARED(tie_scan, Scan::Shared);
  GPU_SHARED(mass_scan, Scan::Shared);
  const SampleStep& step = t.step;
  const int thread = static_cast<int>(threadIdx.x), index = static_cast<int>(blockIdx.x);
  const GpuThresholdRow row = t.rows[index];
  const SampleTask& task = step.tasks[row.task];
  const int64_t tie_weight = TieWeight(row, task);
  FoundToken* found = t.found + int64_t{step.rank} * t.count + index;
  const Place rank = FindRank(t, index, row, task, tie_weight);
  __syncthreads();  // all have read the row
  if (thread == 0) t.rows[index].owner = rank.index;
  if (rank.index != step.rank) {
    if (thread == 0) *found = FoundToken();
    return;
  }
  const int tiles = step.tiles();
  if (thread < tiles) tile_kept[thread] = t.tile_kept[int64_t{index} * tiles + thread];
  __syncthreads();
  if (thread == 0) place = FindPart(tile_kept, 1, tiles, row.ties, tie_weight, rank);
  __syncthreads();

  // A thread has 16 neighbours, so that scans are in the order of ids.
  const float* logits = RowLogits(step, task);
  const int first = place.index * kTileColumns + thread * kTileItems;
  int64_t equal = 0;
  for (int i = 0; i < kTileItems; ++i) {
    if (first + i < step.columns) equal += TokenKey(logits[first + i]) == row.key ? 1 : 0;
  }
  int64_t all = 0;
  int64_t ties_left =
      row.ties - place.ties_before - (Scan::Inclusive(equal, tie_scan, &all) - equal);
  const auto weight_of = [&](int column, int64_t* ties) {
    const float value = logits[column];
    const uint32_t key = TokenKey(value);
    if (key == row.key) return (*ties)-- > 0 ? tie_weight : int64_t{0};
    return WeightAbove(value, key, row, task);
  };
  int64_t mass = 0, ties = ties_left;
  for (int i = 0; i < kTileItems; ++i) {
    if (first + i < step.columns) mass += weight_of(first + i, &ties);
  }
  int64_t point = place.point - (Scan::Inclusive(mass, mass_scan, &all) - mass);
  if (point < 0 || point >= mass) return;
  for (int i = 0; i < kTileItems; ++i) {  // one thread; it ends at the token
    const int64_t weight = weight_of(first + i, &ties_left);
    if (point < weight) {
      FoundToken token;
      token.id = step.first_id + first + i;
      token.raw = RawLogit(step, task, row.task, first + i, logits[first + i]);
      *found = token;
      return;
    }
    point -= weight;
  }
}

__global__ void __launch_bounds__(kThreads) FinishKernel(const __grid_constant__ ThresholdStep t) {
  const SampleStep& step = t.step;
  const int index = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (index >= t.count) return;
  const GpuThresholdRow row = t.rows[index];
  const SampleTask& task = step.tasks[row.task];
  SampleResult* result = step.results + row.task;
  if (row.owner >= 0) {
    const FoundToken token = t.found[int64_t{row.owner} * t.count + index];
    result->id = token.id;
    if (task.wants_logprobs) result->logprob = Logprob(token.raw, step.row_norms[row.task]);
  }
  if (task.id_out != nullptr) *task.id_out = result->id;
}

bool Bad(const ThresholdStep& t) {
  return t.count < 0 || t.count > 65535 || t.step.columns < 0 || t.step.tiles() > kMaxTiles ||
         t.step.ranks < 1 || t.step.ranks > kMaxSampleRanks;
}

cudaError_t LaunchOver(const char* name, void (*kernel)(ThresholdStep), dim3 grid,
                       const ThresholdStep& t, cudaStream_t stream) {
  gpu::LaunchConfig config;
  config.name = name;
  config.grid = grid;
  config.block = dim3(kThreads);
  config.stream = stream;
  return gpu::Launch(kernel, config, t);
}

}  // namespace

cudaError_t ClearKeptMass(const ThresholdStep& t, cudaStream_t stream) {
  return cudaMemsetAsync(t.kept + int64_t{t.step.rank} * t.count, 0,
                         static_cast<size_t>(t.count) * sizeof(ShardKept), stream);
}

cudaError_t LaunchKeptMass(const ThresholdStep& t, cudaStream_t stream) {
  if (Bad(t)) return cudaErrorInvalidValue;
  if (t.count == 0 || t.step.columns == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(t.step.tiles()), static_cast<unsigned>(t.count));
  return LaunchOver("kept_mass", KeptMassKernel, grid, t, stream);
}

cudaError_t LaunchFindToken(const ThresholdStep& t, cudaStream_t stream) {
  if (Bad(t)) return cudaErrorInvalidValue;
  if (t.count == 0) return cudaSuccess;
  return LaunchOver("find_token", FindTokenKernel, dim3(static_cast<unsigned>(t.count)), t, stream);
}

cudaError_t LaunchFinishThresholds(const ThresholdStep& t, cudaStream_t stream) {
  if (Bad(t)) return cudaErrorInvalidValue;
  if (t.count == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((t.count + kThreads - 1) / kThreads);
  return LaunchOver("finish_thresholds", FinishKernel, dim3(blocks), t, stream);
}

}  // namespace lapidary
