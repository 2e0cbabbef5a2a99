// Device code: the parts of a row's shard that several sampling kernels look at.
#pragma once
#include "kernels/gpu.h"
#include "kernels/sampling/sample_step.h"
#include "kernels/sampling/token_weight.h"

namespace lapidary {

constexpr int kTileThreads = 256;
constexpr int kTileItems = kTileColumns / kTileThreads;

GPU_DEVICE const float* RowLogits(const SampleStep& step, const SampleTask& task) {
  return step.logits + task.logits_row * step.stride;
}

// A thread's fours of neighbours in the tile that begins at column `begin`: item j is column
// begin + j / 4 * 1024 + 4 t + j % 4. -inf beyond the shard.
GPU_DEVICE void LoadTile(float (&value)[kTileItems], const float* row, int begin, int columns) {
  const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
#pragma unroll
  for (int j = 0; j < kTileItems; j += 4) {
    const int column = begin + j * kTileThreads + static_cast<int>(threadIdx.x) * 4;
    if (aligned && column + 4 <= columns) {
      const uint4 four = gpu::LoadOnce16(row + column);
      value[j] = FloatOfBits(four.x), value[j + 1] = FloatOfBits(four.y);
      value[j + 2] = FloatOfBits(four.z), value[j + 3] = FloatOfBits(four.w);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        value[j + i] = column + i < columns ? row[column + i] : ValueOfKey(kKeyOfMinusInfinity);
      }
    }
  }
}

// The first edit of a task whose column is not below `column`.
GPU_DEVICE int FindEdit(const SampleStep& step, const SampleTask& task, int column) {
  int begin = task.first_edit, end = task.first_edit + task.edits;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (step.edits[middle].column < column) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// The model's logit of a column whose logit is now `value`.
GPU_DEVICE float RawLogit(const SampleStep& step, const SampleTask& task, int row, int column,
                          float value) {
  const int edit = FindEdit(step, task, column);
  if (edit < task.first_edit + task.edits && step.edits[edit].column == column) {
    return step.edit_raws[edit];
  }
  if (task.pending_id != nullptr && step.pending[row].column == column) {
    return step.pending[row].raw;
  }
  return value;
}

// A rank's message.
GPU_DEVICE const ShardSummary* Summaries(const SampleStep& step, int rank) {
  return reinterpret_cast<const ShardSummary*>(step.messages + rank * step.message_bytes);
}
GPU_DEVICE const ShardEntry* Entries(const SampleStep& step, int rank) {
  return reinterpret_cast<const ShardEntry*>(Summaries(step, rank) + step.rows);
}

// exp(x) for x <= 0, within |x| 2^-23 + 2^-22 of it; NaN stays.
GPU_DEVICE float ExpOfNegative(float x) { return gpu::Exp2Approx(x * 1.44269504f); }

}  // namespace lapidary
