// Edits of logits: a thread takes an edit, 20 bytes of list and one scattered logit each way. Rows
// have a handful, or as many as their prompts have different tokens; bound by latency.
#include "kernels/sampling/sample_cuda.h"
#include "kernels/sampling/shard_row.h"

namespace lapidary {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerRow = 8;

struct LogitEditsParams {
  SampleStep step;
  const int32_t* edited;
};

__global__ void __launch_bounds__(kThreads)
    LogitEditsKernel(const __grid_constant__ LogitEditsParams p) {
  const SampleStep& step = p.step;
  const int row = p.edited[blockIdx.x];
  const SampleTask& task = step.tasks[row];
  float* logits = step.logits + task.logits_row * step.stride;
  int pending_column = -1;
  if (task.pending_id != nullptr) {
    const int column = *task.pending_id - step.first_id;
    if (column >= 0 && column < step.columns) pending_column = column;
  }
  const int end = task.first_edit + task.edits;
  const int first = task.first_edit + static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  for (int e = first; e < end; e += kBlocksPerRow * kThreads) {
    const TokenEdit edit = step.edits[e];
    if (e > task.first_edit && step.edits[e - 1].column == edit.column) continue;
    const float raw = logits[edit.column];
    float value = raw + edit.bias;
    for (int more = e + 1; more < end && step.edits[more].column == edit.column; ++more) {
      value += step.edits[more].bias;
    }
    if (task.penalized) {
      const int32_t pending = edit.column == pending_column ? 1 : 0;
      value = ApplyPenalties(value, task.penalties, edit.in_prompt, edit.output_count + pending);
    }
    logits[edit.column] = edit.forbidden ? ValueOfKey(kKeyOfMinusInfinity) : value;
    step.edit_raws[e] = raw;
  }
  if (task.pending_id == nullptr || blockIdx.y != 0 || threadIdx.x != 0) return;
  PendingEdit pending;
  if (pending_column >= 0) {
    const int e = FindEdit(step, task, pending_column);
    if (e == end || step.edits[e].column != pending_column) {
      pending.column = pending_column;
      pending.raw = logits[pending_column];
      logits[pending_column] = ApplyPenalties(pending.raw, task.penalties, false, 1);
    }
  }
  step.pending[row] = pending;
}

}  // namespace

cudaError_t LaunchLogitEdits(const SampleStep& step, const int32_t* edited, int count,
                             cudaStream_t stream) {
  if (count < 0) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "logit_edits";
  config.grid = dim3(static_cast<unsigned>(count), kBlocksPerRow);
  config.block = dim3(kThreads);
  config.stream = stream;
  LogitEditsParams p;
  p.step = step;
  p.edited = edited;
  return gpu::Launch(LogitEditsKernel, config, p);
}

}  // namespace lapidary
