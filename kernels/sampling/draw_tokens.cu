// From all ranks' messages to tokens. A block has one row: at most 8 lists of 256 candidates, each
// in order already, so a candidate's place in the joint order is its place in its list and, by
// bisection, how many of each other list stand before it. Then a thread has one candidate each:
// weights, a scan of the masses for top-p, and where the random point falls among the kept ones by
// ascending id, which is a sum over all kept with a smaller id.
//
// 16 bytes a candidate; a few microseconds of dependent steps, whatever the number of rows.
#include "kernels/sampling/block_scan.h"
#include "kernels/sampling/row_score.h"
#include "kernels/sampling/sample_cuda.h"
#include "kernels/sampling/shard_row.h"
#include "kernels/sampling/threshold_step.h"

namespace lapidary {
namespace {

constexpr int kThreads = kMaxListed;

// The best `count` of the ranks' lists.
struct Merged {
  uint32_t keys[kMaxSampleRanks * kMaxListed];
  int32_t order[kMaxListed];  // entry rank * count + place of the best, the second ...
};

// How many of a list's keys are above `key`, or reach it.
GPU_DEVICE int CountBetter(const uint32_t* keys, int count, uint32_t key, bool ties_too) {
  int begin = 0, end = count;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (keys[middle] > key || (ties_too && keys[middle] == key)) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Merges the lists that begin at entry `at` of each message; returns how many there are in the
// result, at most `count`.
GPU_DEVICE int Merge(const SampleStep& step, int at, int count, Merged& merged) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // an earlier result has been read
  for (int i = thread; i < step.ranks * count; i += kThreads) {
    merged.keys[i] = Entries(step, i / count)[at + i % count].key;
  }
  merged.order[thread] = -1;
  __syncthreads();
  for (int i = thread; i < step.ranks * count; i += kThreads) {
    const uint32_t key = merged.keys[i];
    const int own = i / count;
    if (key <= kKeyOfMinusInfinity) continue;
    int place = i % count;
    for (int r = 0; r < step.ranks; ++r) {  // lower ranks have lower ids
      if (r != own) place += CountBetter(merged.keys + r * count, count, key, r < own);
    }
    if (place < count) merged.order[place] = i;
  }
  __syncthreads();
  return __syncthreads_count(merged.order[thread] >= 0);
}

GPU_DEVICE ShardEntry EntryOf(const SampleStep& step, int at, int count, const Merged& merged,
                              int place) {
  const int i = merged.order[place];
  const uint4 words = gpu::Load<uint4>(Entries(step, i / count) + at + i % count);
  ShardEntry entry;
  entry.key = words.x;
  entry.id = static_cast<int32_t>(words.y);
  entry.raw = FloatOfBits(words.z);
  return entry;
}

// Of all ranks, in their order.
GPU_DEVICE RowNorm NormOfRow(const SampleStep& step, int row) {
  const float nothing = ValueOfKey(kKeyOfMinusInfinity);
  float max = nothing, sum = 0;
  for (int r = 0; r < step.ranks; ++r) max = fmaxf(max, Summaries(step, r)[row].max);
  for (int r = 0; r < step.ranks; ++r) {
    const ShardSummary& shard = Summaries(step, r)[row];
    sum += shard.sum * (shard.max == nothing ? 1.0f : ExpOfNegative(shard.max - max));
  }
  RowNorm norm;
  norm.max = max;
  norm.log_sum = logf(sum);
  return norm;
}

struct DrawShared {
  Merged merged;
  BlockScan<kThreads>::Shared scan;
  int32_t ids[kThreads];
  int64_t weights[kThreads];
  int32_t kept, chosen;
  int64_t kept_mass;
};

// The place of the token drawn from `count` > 0 candidates in order (worker/sampler_draw.h,
// Draw).
GPU_DEVICE int DrawFrom(const SampleTask& task, const ShardEntry& own, int count, float best_value,
                        DrawShared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t weight =
      thread < count ? TokenWeight(ValueOfKey(own.key), best_value, task.scale) : 0;
  s.ids[thread] = own.id;
  s.weights[thread] = weight;
  if (thread == 0) {
    s.kept = count;
    s.chosen = 0;
    s.kept_mass = 0;
  }
  int64_t mass = 0;
  const int64_t upto = BlockScan<kThreads>::Inclusive(weight, s.scan, &mass);
  const int64_t target = task.top_p < 1 ? TopPMass(task.top_p, mass) : mass;
  // Kept is what stands before the first that is not needed for the target, or too light.
  if (thread < count && (upto - weight >= target || weight < task.min_weight)) {
    atomicMin(&s.kept, thread);
  }
  __syncthreads();
  if (thread == s.kept - 1) s.kept_mass = upto;
  __syncthreads();
  if (s.kept_mass == 0) return 0;  // infinite logits have no distribution
  const auto point =
      static_cast<int64_t>(__umul64hi(task.bits, static_cast<unsigned long long>(s.kept_mass)));
  if (thread < s.kept) {
    int64_t before = 0;
    for (int i = 0; i < s.kept; ++i) before += s.ids[i] < own.id ? s.weights[i] : 0;
    if (point >= before && point - before < weight) s.chosen = thread;
  }
  __syncthreads();
  return s.chosen;
}

struct DrawParams {
  SampleStep step;
  GpuThresholdRow* threshold_rows;
};

__global__ void __launch_bounds__(kThreads) DrawKernel(const __grid_constant__ DrawParams p) {
  GPU_SHARED(s, DrawShared);
  GPU_SHARED(norm, RowNorm);
  const SampleStep& step = p.step;
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const SampleTask& task = step.tasks[row];
  SampleResult result;  // thread 0's counts
  if (task.wants_logprobs) {
    if (thread == 0) {
      norm = NormOfRow(step, row);
      step.row_norms[row] = norm;
    }
    __syncthreads();
    if (task.listed > 0) {
      result.listed = Merge(step, task.listed_at, task.listed, s.merged);
      if (thread < result.listed) {
        const ShardEntry entry = EntryOf(step, task.listed_at, task.listed, s.merged, thread);
        step.top[task.top_at + thread] = {entry.id, Logprob(entry.raw, norm)};
      }
    }
    float scored = ValueOfKey(kKeyOfMinusInfinity);
    for (int r = 0; r < step.ranks; ++r) {
      const ShardSummary& shard = Summaries(step, r)[row];
      if (shard.has_scored != 0) scored = shard.scored;
    }
    if (task.scored_id >= 0) result.scored_logprob = Logprob(scored, norm);
  }
  if (task.candidates > 0) {
    const int count = Merge(step, task.candidates_at, task.candidates, s.merged);
    ShardEntry own;
    if (thread < count) own = EntryOf(step, task.candidates_at, task.candidates, s.merged, thread);
    ShardEntry chosen;  // id -1 unless there is one
    if (count > 0) {
      const int best = s.merged.order[0];
      const float best_value = ValueOfKey(s.merged.keys[best]);
      const int place =
          task.greedy || task.threshold_row >= 0 ? 0 : DrawFrom(task, own, count, best_value, s);
      chosen = EntryOf(step, task.candidates_at, task.candidates, s.merged, place);
    }
    if (thread == 0 && task.threshold_row >= 0) {
      GpuThresholdRow begin;
      begin.task = row;
      begin.best_id = chosen.id;
      begin.best_raw = chosen.id < 0 ? 0.0f : chosen.raw;
      begin.max = chosen.id < 0 ? 0.0f : ValueOfKey(chosen.key);
      p.threshold_rows[task.threshold_row] = begin;
    }
    result.id = max(chosen.id, 0);  // nothing is above -inf: token 0
    if (task.wants_logprobs) result.logprob = Logprob(chosen.id < 0 ? 0.0f : chosen.raw, norm);
    if (thread == 0 && task.threshold_row < 0 && task.id_out != nullptr) {
      *task.id_out = result.id;
    }
  }
  if (thread == 0) step.results[row] = result;
}

}  // namespace

cudaError_t LaunchDraw(const SampleStep& step, GpuThresholdRow* threshold_rows,
                       cudaStream_t stream) {
  if (step.rows < 0 || step.ranks < 1 || step.ranks > kMaxSampleRanks) {
    return cudaErrorInvalidValue;
  }
  if (step.rows == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "draw_tokens";
  config.grid = dim3(static_cast<unsigned>(step.rows));
  config.block = dim3(kThreads);
  config.stream = stream;
  DrawParams p;
  p.step = step;
  p.threshold_rows = threshold_rows;
  return gpu::Launch(DrawKernel, config, p);
}

}  // namespace lapidary
