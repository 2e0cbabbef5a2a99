#include "worker/executor.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

Executor::Executor(ModelRunner& runner, Sampler& sampler, const ExecutorConfig& config)
    : runner_(runner), sampler_(sampler), config_(config) {}

absl::StatusOr<StepResult> Executor::Execute(const StepPlan& plan) {
  if (plan.epoch != config_.epoch) {
    return absl::InternalError(absl::StrFormat("plan %d is of epoch %d, this rank is in epoch %d",
                                               plan.step, plan.epoch, config_.epoch));
  }
  RETURN_IF_ERROR(Forget(plan.finished));
  for (const NewSequence& added : plan.added) RETURN_IF_ERROR(Add(added));

  StepResult result;
  result.epoch = plan.epoch;
  result.step = plan.step;
  if (plan.rows.empty()) return result;

  HostBatch batch;
  batch.seq_begin.push_back(0);
  std::vector<Sequence*> row_sequences;
  std::vector<Wanted> wanted;
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    const PlanRow& row = plan.rows[r];
    ASSIGN_OR_RETURN(Sequence* const sequence, Prepare(row));
    row_sequences.push_back(sequence);
    AppendWanted(row, r, *sequence, &batch, &wanted);  // before the tokens: needs their offset
    AppendTokens(row, *sequence, &batch);
    result.rows.push_back(StepResultRow{row.seq, {}, {}});
  }

  std::vector<SampledRow> sampled;
  RETURN_IF_ERROR(Run(batch, wanted, &sampled, &result));

  for (size_t r = 0; r < plan.rows.size(); ++r) row_sequences[r]->cached_len += plan.rows[r].len;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const Wanted& want = wanted[i];
    StepResultRow& out = result.rows[want.plan_row];
    if (want.sample.scored_token >= 0) out.prompt_scored.push_back(std::move(sampled[i].scored));
    if (!want.sample.samples) continue;
    const TokenId token = sampled[i].sampled.id;
    if (token < 0 || token >= config_.vocab) {
      return absl::InternalError(absl::StrFormat("the sampler chose token %d of a vocabulary of %d",
                                                 token, config_.vocab));
    }
    Sequence& sequence = *row_sequences[want.plan_row];
    sequence.tokens.push_back(token);
    sequence.CountOutput(token);
    out.sampled.push_back(std::move(sampled[i].sampled));
  }
  return result;
}

absl::Status Executor::Forget(const std::vector<RequestId>& ids) {
  for (const RequestId id : ids) {
    if (sequences_.erase(id) == 0) {
      return absl::InternalError(
          absl::StrFormat("the plan ends sequence %d, which this rank does not know", id.value));
    }
  }
  return absl::OkStatus();
}

absl::Status Executor::Add(const NewSequence& added) {
  const auto inserted = sequences_.try_emplace(added.id);
  if (!inserted.second) {
    return absl::InternalError(
        absl::StrFormat("the plan begins sequence %d, which this rank knows", added.id.value));
  }
  const int64_t known = static_cast<int64_t>(added.tokens.size());
  if (added.prompt_len < 0 || added.prompt_len > known) {
    return absl::InternalError(absl::StrFormat("sequence %d: a prompt of %d in %d tokens",
                                               added.id.value, added.prompt_len, known));
  }
  for (const TokenId token : added.tokens) {
    if (token < 0 || token >= config_.vocab) {
      return absl::InternalError(absl::StrFormat("sequence %d: token %d of a vocabulary of %d",
                                                 added.id.value, token, config_.vocab));
    }
  }
  Sequence& sequence = inserted.first->second;
  sequence.id = added.id;
  sequence.choice = added.choice;
  sequence.prompt_len = added.prompt_len;
  sequence.tokens = added.tokens;
  sequence.sampling = added.sampling;
  if (added.sampling.repetition_penalty != 1.0f) {
    for (int32_t i = 0; i < added.prompt_len; ++i) ++sequence.counts.prompt[added.tokens[i]];
  }
  for (int64_t i = added.prompt_len; i < known; ++i) sequence.CountOutput(added.tokens[i]);
  return absl::OkStatus();
}

absl::StatusOr<Executor::Sequence*> Executor::Prepare(const PlanRow& row) {
  const auto found = sequences_.find(row.seq);
  if (found == sequences_.end()) {
    return absl::InternalError(
        absl::StrFormat("a row is of sequence %d, which this rank does not know", row.seq.value));
  }
  Sequence& sequence = found->second;
  const int64_t known = static_cast<int64_t>(sequence.tokens.size());
  // A sampled source needs no lookup here: the step that sampled it has ended on this rank, so the
  // token stands at its position.
  if (row.len <= 0 || row.start != sequence.cached_len || int64_t{row.start} + row.len > known) {
    return absl::InternalError(absl::StrFormat(
        "sequence %d: a row of tokens [%d, %d), this rank has %d and %d of them cached",
        row.seq.value, row.start, int64_t{row.start} + row.len, known, sequence.cached_len));
  }
  if (row.samples && (row.logits == LogitsMask::kNone || row.start + row.len != known)) {
    return absl::InternalError(
        absl::StrFormat("sequence %d: a row up to %d samples without logits, or within the %d "
                        "known tokens",
                        row.seq.value, row.start + row.len, known));
  }
  for (int f = 0; f < kKvFamilies; ++f) {
    const std::vector<PageId>& added = row.pages_added[f];
    sequence.pages[f].insert(sequence.pages[f].end(), added.begin(), added.end());
  }
  RETURN_IF_ERROR(CheckPages(row, sequence));
  return &sequence;
}

absl::Status Executor::CheckPages(const PlanRow& row, const Sequence& sequence) const {
  const int64_t needed = (int64_t{row.start} + row.len + kPageTokens - 1) / kPageTokens;
  for (int f = 0; f < kKvFamilies; ++f) {
    for (const PageId page : row.pages_added[f]) {
      if (page.value >= 0 && page.value < config_.pages[f]) continue;
      return absl::InternalError(absl::StrFormat("sequence %d: page %d of a pool of %d",
                                                 row.seq.value, page.value, config_.pages[f]));
    }
    if (config_.pages[f] > 0 && std::ssize(sequence.pages[f]) < needed) {
      return absl::InternalError(absl::StrFormat("sequence %d: %d pages for %d tokens",
                                                 row.seq.value, sequence.pages[f].size(),
                                                 row.start + row.len));
    }
  }
  return absl::OkStatus();
}

void Executor::AppendTokens(const PlanRow& row, const Sequence& sequence, HostBatch* batch) {
  for (int32_t p = row.start; p < row.start + row.len; ++p) {
    batch->token_ids.push_back(sequence.tokens[p]);
    batch->positions.push_back(p);
  }
  batch->seq_begin.push_back(static_cast<int32_t>(batch->token_ids.size()));
  batch->context_len.push_back(row.start + row.len);
  for (int f = 0; f < kKvFamilies; ++f) batch->page_tables[f].push_back(&sequence.pages[f]);
}

void Executor::AppendWanted(const PlanRow& row, size_t plan_row, const Sequence& sequence,
                            HostBatch* batch, std::vector<Wanted>* wanted) {
  if (row.logits == LogitsMask::kNone) return;
  const int32_t first_token = static_cast<int32_t>(batch->token_ids.size());
  const int32_t end = row.start + row.len;
  const SamplingParams& params = sequence.sampling;
  for (int32_t p = row.logits == LogitsMask::kAll ? row.start : end - 1; p < end; ++p) {
    // Logits at position p speak of position p + 1.
    const bool scores = row.logits == LogitsMask::kAll && p + 1 < sequence.prompt_len;
    const bool samples = row.samples && p + 1 == end;
    if (!scores && !samples) continue;
    Wanted want;
    want.plan_row = plan_row;
    want.sample.samples = samples;
    want.sample.params = &params;
    want.sample.counts = &sequence.counts;
    want.sample.choice = sequence.choice;
    want.sample.position = p + 1;
    want.sample.generated = static_cast<int32_t>(sequence.tokens.size()) - sequence.prompt_len;
    if (scores) want.sample.scored_token = sequence.tokens[p + 1];
    want.sample.top_logprobs = std::max(0, samples ? params.logprobs : params.prompt_logprobs);
    want.sample.wants_logprob = scores || params.logprobs >= 0;
    wanted->push_back(want);
    batch->logits_index.push_back(first_token + (p - row.start));
  }
}

absl::Status Executor::Run(const HostBatch& batch, const std::vector<Wanted>& wanted,
                           std::vector<SampledRow>* sampled, StepResult* result) {
  Stream& stream = runner_.stream();
  const Clock::time_point start = Clock::now();
  Clock::time_point forward_end = start;
  if (const absl::Status forward = runner_.Forward(batch); !forward.ok()) {
    stream.Synchronize().IgnoreError();  // nothing may still use the batch
    return forward;
  }
  stream.Enqueue([&forward_end] {
    forward_end = Clock::now();
    return absl::OkStatus();
  });

  // More wanted rows than the logits buffer holds are computed and sampled in slices.
  const size_t slice_rows = static_cast<size_t>(std::max(1, config_.max_logits_rows));
  std::vector<std::vector<SampledRow>> slices((wanted.size() + slice_rows - 1) / slice_rows);
  for (size_t s = 0; s < slices.size(); ++s) {
    const size_t first = s * slice_rows;
    if (s > 0) runner_.EnqueueLogits(static_cast<int64_t>(first));
    std::vector<SampleRow> rows;
    for (size_t i = first; i < std::min(wanted.size(), first + slice_rows); ++i) {
      rows.push_back(wanted[i].sample);
      rows.back().logits_row = static_cast<int32_t>(i - first);
    }
    sampler_.Sample(runner_.logits(), std::move(rows), stream, &slices[s]);
  }
  RETURN_IF_ERROR(stream.Synchronize());
  result->forward_seconds = Seconds(forward_end - start);
  result->sample_seconds = Seconds(Clock::now() - forward_end);

  for (std::vector<SampledRow>& slice : slices) {
    for (SampledRow& row : slice) sampled->push_back(std::move(row));
  }
  if (sampled->size() != wanted.size()) {
    return absl::InternalError(
        absl::StrFormat("the sampler answered %d of %d rows", sampled->size(), wanted.size()));
  }
  return absl::OkStatus();
}

}  // namespace lapidary
