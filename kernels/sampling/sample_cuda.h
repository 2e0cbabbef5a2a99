// Sampling on a GPU, in the order of the launches of a step. Between LaunchShardLists and
// LaunchDraw all ranks' messages are gathered.
//
// Errors: cudaErrorInvalidValue for a bad size, else the launch's; no rows or jobs: a no-op.
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/sampling/sample_step.h"
#include "kernels/sampling/threshold_step.h"

namespace lapidary {

// Jobs [first, last): each tile's list of its best tokens, and its norm; then the tiles' lists and
// norms become part of this rank's message. Jobs on the model's logits run before LaunchLogitEdits,
// jobs on edited ones after it. `most`: the largest count of a job.
cudaError_t LaunchShardTiles(const SampleStep& step, int first, int last, cudaStream_t stream);
cudaError_t LaunchShardLists(const SampleStep& step, int first, int last, int most,
                             cudaStream_t stream);

// Rows with edits (or a pending token) get them; the model's logits are kept in edit_raws and
// pending. tasks[edited[i]], i < count: device memory.
cudaError_t LaunchLogitEdits(const SampleStep& step, const int32_t* edited, int count,
                             cudaStream_t stream);

// All ranks' messages become results; rows that thresholds decide get their best token for the time
// being, and begin in threshold_rows[SampleTask::threshold_row].
cudaError_t LaunchDraw(const SampleStep& step, GpuThresholdRow* threshold_rows,
                       cudaStream_t stream);

// -- Threshold rows.

// Clears this rank's histograms before LaunchThresholdHistogram, and its kept masses before
// LaunchKeptMass.
cudaError_t ClearHistograms(const ThresholdStep& t, cudaStream_t stream);
cudaError_t ClearKeptMass(const ThresholdStep& t, cudaStream_t stream);

// Round 0, 1, 2 by count, then, if a row has a top-p, by mass: this rank's histograms, and, when
// those of all ranks have been gathered, the next bits of the thresholds. `blocks`: how many share
// a row, 1 to 64; no result depends on it.
cudaError_t LaunchThresholdHistogram(const ThresholdStep& t, bool by_mass, int round, int blocks,
                                     cudaStream_t stream);
cudaError_t LaunchThresholdNarrow(const ThresholdStep& t, bool by_mass, int round,
                                  cudaStream_t stream);

// What this shard keeps; then, gathered, the token, on the rank that has it; then, gathered,
// results.
cudaError_t LaunchKeptMass(const ThresholdStep& t, cudaStream_t stream);
cudaError_t LaunchFindToken(const ThresholdStep& t, cudaStream_t stream);
cudaError_t LaunchFinishThresholds(const ThresholdStep& t, cudaStream_t stream);

}  // namespace lapidary
