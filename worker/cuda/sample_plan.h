// From the rows of a step to what the device is told about them: tasks, jobs, edits, and where
// everything stands in messages and results. No device is needed to make one.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/sampling/sample_step.h"
#include "model/shard_plan.h"
#include "worker/sampler.h"

namespace lapidary {

// Jobs that share the scratch for lists: launched together.
struct JobGroup {
  int first = 0, last = 0;
  int most = 0;  // the largest count of a job
};

// Kept between steps, so that its lists do not grow anew.
struct SamplePlan {
  std::vector<SampleTask> tasks;  // of the rows, in order
  std::vector<ShardJob> jobs;     // on the model's logits, then on edited ones
  std::vector<TokenEdit> edits;
  std::vector<int32_t> edited;  // tasks with edits here, or a pending token
  std::vector<JobGroup> groups, edited_groups;
  int64_t entries = 0;  // of a message
  int64_t top = 0;      // tokens in the results
  int64_t lists = 0;    // the most entries of tiles' lists in one group
  int threshold_rows = 0;
  bool by_count = false, by_mass = false;  // a threshold row has a top-k, a top-p

  std::vector<ShardJob> edited_jobs;  // while it is made
};

// `shard`: this rank's columns, without padding. The layout of messages is a function of the rows
// alone, so all ranks have the same. Groups have at most `list_entries` entries of lists, or one
// job.
void MakeSamplePlan(const std::vector<SampleRow>& rows, int64_t vocab, Range shard,
                    int64_t list_entries, SamplePlan* plan);

// The row's edits in the shard, by ascending column: MakeEdits() of worker/sampler_edits.h without
// the logits.
void AppendTokenEdits(const SampleRow& row, Range shard, std::vector<TokenEdit>* edits);

}  // namespace lapidary
