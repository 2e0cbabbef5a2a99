#include "worker/cuda/sample_plan.h"

#include <algorithm>

#include "kernels/sampling/philox.h"
#include "worker/sampler_filter.h"

namespace lapidary {
namespace {

bool IsPenalized(const SampleRow& row) {
  return row.params->has_penalties() && row.counts != nullptr;
}
bool IsBeforeMinTokens(const SampleRow& row) { return row.generated < row.params->min_tokens; }

// Whether some shard may have edits: the same answer on every rank.
bool MayBeEdited(const SampleRow& row) {
  const SamplingParams& p = *row.params;
  return IsPenalized(row) || !p.logit_bias.empty() || !p.suppressed.empty() ||
         (IsBeforeMinTokens(row) && !p.stop_ids.empty());
}

SampleTask MakeTask(const SampleRow& row, int64_t vocab) {
  SampleTask task;
  task.logits_row = row.logits_row;
  task.wants_logprobs = row.wants_logprob || row.top_logprobs > 0 || row.scored_token >= 0;
  task.listed = static_cast<int32_t>(
      std::clamp<int64_t>(row.top_logprobs, 0, std::min<int64_t>(vocab, kMaxListed)));
  task.scored_id = row.scored_token;
  if (!row.samples) return task;
  const SamplingParams& params = *row.params;
  const Filter filter = MakeFilter(params, vocab);
  task.candidates = std::max(1, filter.candidates());
  task.greedy = filter.greedy;
  task.scale = MakeSoftmax(0, filter.temperature).scale;
  task.top_k = filter.top_k;
  task.top_p = filter.top_p;
  task.min_weight = filter.min_weight;
  task.bits = UniformBits(params.seed, static_cast<uint32_t>(row.position), row.choice,
                          RandomPurpose::kSample);
  task.id_out = row.id_out;
  task.penalized = IsPenalized(row);
  if (task.penalized) {
    task.penalties = {params.repetition_penalty, params.presence_penalty, params.frequency_penalty};
    task.pending_id = row.pending_id;
  }
  return task;
}

// Fills in where each job's lists are, in groups that fit.
std::vector<JobGroup> Group(std::vector<ShardJob>& jobs, int first, int last, int64_t tiles,
                            int64_t list_entries, std::vector<JobGroup> groups, int64_t* most) {
  groups.clear();
  int64_t used = 0;
  for (int j = first; j < last; ++j) {
    ShardJob& job = jobs[j];
    const int64_t needed = tiles * job.count;
    if (groups.empty() || used + needed > list_entries) {
      groups.push_back({j, j, 0});
      used = 0;
    }
    job.list_at = static_cast<int32_t>(used);
    used += needed;
    groups.back().last = j + 1;
    groups.back().most = std::max(groups.back().most, job.count);
    *most = std::max(*most, used);
  }
  return groups;
}

}  // namespace

void MakeSamplePlan(const std::vector<SampleRow>& rows, int64_t vocab, Range shard,
                    int64_t list_entries, SamplePlan* plan) {
  plan->tasks.clear();
  plan->jobs.clear();
  plan->edited_jobs.clear();
  plan->edits.clear();
  plan->edited.clear();
  plan->entries = plan->top = plan->lists = 0;
  plan->threshold_rows = 0;
  plan->by_count = plan->by_mass = false;
  for (const SampleRow& row : rows) {
    const auto index = static_cast<int32_t>(plan->tasks.size());
    SampleTask task = MakeTask(row, vocab);
    const bool edited = row.samples && MayBeEdited(row);
    task.first_edit = static_cast<int32_t>(plan->edits.size());
    if (edited) AppendTokenEdits(row, shard, &plan->edits);
    task.edits = static_cast<int32_t>(plan->edits.size()) - task.first_edit;
    if (task.edits > 0 || task.pending_id != nullptr) plan->edited.push_back(index);
    task.top_at = static_cast<int32_t>(plan->top);
    plan->top += task.listed;
    if (row.samples && !task.greedy && MakeFilter(*row.params, vocab).candidates() == 0) {
      task.threshold_row = plan->threshold_rows++;
      plan->by_count |= task.top_k > 0;
      plan->by_mass |= task.top_p < 1;
    }
    // One list serves both ends where nothing is edited.
    ShardJob job;
    job.task = index;
    job.wants_norm = task.wants_logprobs;
    job.count = edited ? task.listed : std::max(task.listed, task.candidates);
    job.message_at = static_cast<int32_t>(plan->entries);
    task.listed_at = task.candidates_at = job.message_at;
    plan->entries += job.count;
    if (job.count > 0 || job.wants_norm) plan->jobs.push_back(job);
    if (edited) {
      job.wants_norm = false;
      job.edited = true;
      job.count = task.candidates;
      job.message_at = task.candidates_at = static_cast<int32_t>(plan->entries);
      plan->entries += job.count;
      plan->edited_jobs.push_back(job);
    }
    plan->tasks.push_back(task);
  }
  const auto unedited = static_cast<int>(plan->jobs.size());
  plan->jobs.insert(plan->jobs.end(), plan->edited_jobs.begin(), plan->edited_jobs.end());
  const auto all = static_cast<int>(plan->jobs.size());
  const int64_t tiles = (shard.size() + kTileColumns - 1) / kTileColumns;
  plan->groups =
      Group(plan->jobs, 0, unedited, tiles, list_entries, std::move(plan->groups), &plan->lists);
  plan->edited_groups = Group(plan->jobs, unedited, all, tiles, list_entries,
                              std::move(plan->edited_groups), &plan->lists);
}

void AppendTokenEdits(const SampleRow& row, Range shard, std::vector<TokenEdit>* edits) {
  const SamplingParams& params = *row.params;
  const auto first = static_cast<int64_t>(edits->size());
  const auto touch = [&](TokenId id) -> TokenEdit* {
    if (id < shard.begin || id >= shard.end) return nullptr;
    edits->emplace_back().column = static_cast<int32_t>(id - shard.begin);
    return &edits->back();
  };
  for (const auto& bias : params.logit_bias) {
    if (TokenEdit* edit = touch(bias.first)) edit->bias = bias.second;
  }
  for (TokenId id : params.suppressed) {
    if (TokenEdit* edit = touch(id)) edit->forbidden = true;
  }
  if (IsBeforeMinTokens(row)) {
    for (TokenId id : params.stop_ids) {
      if (TokenEdit* edit = touch(id)) edit->forbidden = true;
    }
  }
  if (IsPenalized(row)) {
    for (const auto& count : row.counts->output) {
      if (TokenEdit* edit = touch(count.first)) edit->output_count = count.second;
    }
    if (params.repetition_penalty != 1.0f) {
      for (const auto& count : row.counts->prompt) {
        if (TokenEdit* edit = touch(count.first)) edit->in_prompt = count.second > 0;
      }
    }
  }
  // One edit for each column, and one more for each further bias. Biases keep their order.
  std::stable_sort(edits->begin() + first, edits->end(),
                   [](const TokenEdit& a, const TokenEdit& b) { return a.column < b.column; });
  int64_t kept = first;
  int64_t of_column = first;  // the first edit of the column at hand
  for (int64_t i = first; i < std::ssize(*edits); ++i) {
    const TokenEdit edit = (*edits)[i];
    if (kept == first || (*edits)[of_column].column != edit.column) {
      of_column = kept;
      (*edits)[kept++] = edit;
      continue;
    }
    TokenEdit& all = (*edits)[of_column];
    all.output_count += edit.output_count;
    all.in_prompt |= edit.in_prompt;
    all.forbidden |= edit.forbidden;
    if (edit.bias == 0) continue;
    TokenEdit more;
    more.column = edit.column;
    more.bias = edit.bias;
    (*edits)[kept++] = more;
  }
  edits->resize(kept);
}

}  // namespace lapidary
