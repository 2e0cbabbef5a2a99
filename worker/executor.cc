#include "worker/executor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

Executor::Executor(ModelRunner& runner, Sampler& sampler, const ExecutorConfig& config)
    : runner_(runner), sampler_(sampler), config_(config), sampled_ids_(runner.sampled_ids()) {}

Executor::~Executor() {
  if (!in_flight_.empty()) Abandon();
}

absl::StatusOr<StepResult> Executor::Execute(const StepPlan& plan) {
  RETURN_IF_ERROR(Submit(plan));
  return Await();
}

absl::Status Executor::Submit(const StepPlan& plan) {
  if (plan.epoch != config_.epoch) {
    return absl::InternalError(absl::StrFormat("plan %d is of epoch %d, this rank is in epoch %d",
                                               plan.step, plan.epoch, config_.epoch));
  }
  if (in_flight() >= kMaxInFlight) {
    return absl::InternalError(
        absl::StrFormat("plan %d comes while %d steps are on their way", plan.step, in_flight()));
  }
  RETURN_IF_ERROR(Forget(plan.finished));
  for (const NewSequence& added : plan.added) RETURN_IF_ERROR(Add(added));

  auto step = std::make_unique<Step>();
  step->result.epoch = plan.epoch;
  step->result.step = plan.step;
  const bool has_ids = sampled_ids_.data != nullptr;
  if (has_ids && std::ssize(plan.rows) > sampled_ids_.rows) {
    return absl::InternalError(absl::StrFormat("plan %d has %d rows, this rank has room for %d",
                                               plan.step, plan.rows.size(), sampled_ids_.rows));
  }
  HostBatch batch;
  batch.seq_begin.push_back(0);
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    const PlanRow& row = plan.rows[r];
    ASSIGN_OR_RETURN(std::shared_ptr<Sequence> sequence, Prepare(row));
    const int32_t place = half_ * sampled_ids_.rows + static_cast<int32_t>(r);
    // Before the tokens: needs their offset.
    AppendWanted(row, r, *sequence, sampled_ids_.data,
                 has_ids ? sampled_ids_.data + place : nullptr, &batch, &step->wanted);
    AppendTokens(row, *sequence, &batch);
    sequence->cached_len += row.len;
    if (row.samples) {
      sequence->coming.push_back({plan.step, static_cast<int32_t>(r), place});
    }
    step->result.rows.push_back(StepResultRow{row.seq, {}, {}});
    step->sequences.push_back(std::move(sequence));
  }
  if (!plan.rows.empty()) {
    if (absl::Status enqueued = Enqueue(batch, *step); !enqueued.ok()) {
      Abandon();  // nothing may still use the batch
      return enqueued;
    }
  }
  step->mark = runner_.stream().Record();
  half_ = 1 - half_;
  in_flight_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<StepResult> Executor::Await() {
  if (in_flight_.empty()) return absl::InternalError("no step is on its way");
  if (absl::Status ran = runner_.stream().Wait(in_flight_.front()->mark); !ran.ok()) {
    Abandon();
    return ran;
  }
  const std::unique_ptr<Step> step = std::move(in_flight_.front());
  in_flight_.pop_front();
  RETURN_IF_ERROR(Finish(*step));
  return std::move(step->result);
}

absl::Status Executor::Forget(const std::vector<RequestId>& ids) {
  for (const RequestId id : ids) {
    // A step on its way keeps what it needs of the sequence.
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
  if (added.cached_len < 0 || added.cached_len > known) {
    return absl::InternalError(absl::StrFormat("sequence %d: a cached prefix of %d in %d tokens",
                                               added.id.value, added.cached_len, known));
  }
  for (const TokenId token : added.tokens) {
    if (token < 0 || token >= config_.vocab) {
      return absl::InternalError(absl::StrFormat("sequence %d: token %d of a vocabulary of %d",
                                                 added.id.value, token, config_.vocab));
    }
  }
  inserted.first->second = std::make_shared<Sequence>();
  Sequence& sequence = *inserted.first->second;
  sequence.id = added.id;
  sequence.choice = added.choice;
  sequence.prompt_len = added.prompt_len;
  sequence.tokens = added.tokens;
  sequence.cached_len = added.cached_len;
  sequence.sampling = added.sampling;
  if (added.sampling.repetition_penalty != 1.0f) {
    for (int32_t i = 0; i < added.prompt_len; ++i) ++sequence.counts.prompt[added.tokens[i]];
  }
  for (int64_t i = added.prompt_len; i < known; ++i) ++sequence.counts.output[added.tokens[i]];
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Executor::Sequence>> Executor::Prepare(const PlanRow& row) {
  const auto found = sequences_.find(row.seq);
  if (found == sequences_.end()) {
    return absl::InternalError(
        absl::StrFormat("a row is of sequence %d, which this rank does not know", row.seq.value));
  }
  Sequence& sequence = *found->second;
  const int64_t end = int64_t{row.start} + row.len;
  if (row.len <= 0 || row.start != sequence.cached_len || end > sequence.total_len()) {
    return absl::InternalError(absl::StrFormat(
        "sequence %d: a row of tokens [%d, %d), this rank has %d and %d of them cached",
        row.seq.value, row.start, end, sequence.total_len(), sequence.cached_len));
  }
  if (row.samples && (row.logits == LogitsMask::kNone || end != sequence.total_len())) {
    return absl::InternalError(
        absl::StrFormat("sequence %d: a row up to %d samples without logits, or within the %d "
                        "tokens there are",
                        row.seq.value, end, sequence.total_len()));
  }
  RETURN_IF_ERROR(CheckSource(row, sequence));
  for (int f = 0; f < kKvFamilies; ++f) {
    const std::vector<PageId>& added = row.pages_added[f];
    sequence.pages[f].insert(sequence.pages[f].end(), added.begin(), added.end());
  }
  RETURN_IF_ERROR(CheckPages(row, sequence));
  if (end > std::ssize(sequence.tokens) && sampled_ids_.data == nullptr) {
    return absl::InternalError(absl::StrFormat(
        "sequence %d: token %d is still to be sampled, and this model can not begin with such",
        row.seq.value, end - 1));
  }
  return found->second;
}

// Where a row's tokens are is seen from the sequence alone: a rank that has awaited fewer steps
// than the leader still has on its way what the leader calls known, and the other way round.
absl::Status Executor::CheckSource(const PlanRow& row, const Sequence& sequence) {
  if (row.source == InputSource::kKnown) return absl::OkStatus();
  const int64_t ahead = row.start - std::ssize(sequence.tokens);
  const bool agrees = ahead < 0 || (sequence.coming[ahead].step == row.source_step &&
                                    sequence.coming[ahead].row == row.source_row);
  if (row.len == 1 && agrees) return absl::OkStatus();
  return absl::InternalError(absl::StrFormat(
      "sequence %d: tokens [%d, %d) are not what row %d of step %d samples", row.seq.value,
      row.start, row.start + row.len, row.source_row, row.source_step));
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
  const int64_t known = std::ssize(sequence.tokens);
  for (int32_t p = row.start; p < row.start + row.len; ++p) {
    batch->token_ids.push_back(p < known ? sequence.tokens[p] : 0);
    batch->sampled_from.push_back(p < known ? -1 : sequence.coming[p - known].place);
    batch->positions.push_back(p);
  }
  batch->seq_begin.push_back(static_cast<int32_t>(batch->token_ids.size()));
  batch->context_len.push_back(row.start + row.len);
  for (int f = 0; f < kKvFamilies; ++f) batch->page_tables[f].push_back(&sequence.pages[f]);
}

void Executor::AppendWanted(const PlanRow& row, size_t plan_row, Sequence& sequence,
                            const TokenId* sampled_ids, TokenId* id_out, HostBatch* batch,
                            std::vector<Wanted>* wanted) {
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
    want.sample.generated = std::max(0, p + 1 - sequence.prompt_len);
    if (samples) {
      want.sample.counted_in = &sequence.counts;
      want.sample.id_out = id_out;
      // Of two steps on their way the older one may sample a token before this one.
      if (!sequence.coming.empty() && sampled_ids != nullptr) {
        want.sample.pending_id = sampled_ids + sequence.coming.front().place;
      }
    }
    if (scores) want.sample.scored_token = sequence.tokens[p + 1];
    want.sample.top_logprobs = std::max(0, samples ? params.logprobs : params.prompt_logprobs);
    want.sample.wants_logprob = scores || params.logprobs >= 0;
    wanted->push_back(want);
    batch->logits_index.push_back(first_token + (p - row.start));
  }
}

absl::Status Executor::Enqueue(const HostBatch& batch, Step& step) {
  Stream& stream = runner_.stream();
  stream.Stamp(&step.begin);
  RETURN_IF_ERROR(runner_.Forward(batch));
  stream.Stamp(&step.forward_end);

  // More wanted rows than the logits buffer holds are computed and sampled in slices.
  const size_t slice_rows = static_cast<size_t>(std::max(1, config_.max_logits_rows));
  step.slices.resize((step.wanted.size() + slice_rows - 1) / slice_rows);
  for (size_t s = 0; s < step.slices.size(); ++s) {
    const size_t first = s * slice_rows;
    if (s > 0) runner_.EnqueueLogits(static_cast<int64_t>(first));
    std::vector<SampleRow> rows;
    for (size_t i = first; i < std::min(step.wanted.size(), first + slice_rows); ++i) {
      rows.push_back(step.wanted[i].sample);
      rows.back().logits_row = static_cast<int32_t>(i - first);
    }
    sampler_.Sample(runner_.logits(), std::move(rows), stream, &step.slices[s]);
  }
  stream.Stamp(&step.end);
  return absl::OkStatus();
}

// The stream has run the step: its tokens become known.
absl::Status Executor::Finish(Step& step) {
  StepResult& result = step.result;
  if (result.rows.empty()) return absl::OkStatus();
  result.forward_seconds = Seconds(step.forward_end - step.begin);
  result.sample_seconds = Seconds(step.end - step.forward_end);
  if (last_end_ != Clock::time_point()) result.idle_seconds = Seconds(step.begin - last_end_);
  last_end_ = step.end;

  std::vector<SampledRow> sampled;
  for (std::vector<SampledRow>& slice : step.slices) {
    for (SampledRow& row : slice) sampled.push_back(std::move(row));
  }
  if (sampled.size() != step.wanted.size()) {
    return absl::InternalError(
        absl::StrFormat("the sampler answered %d of %d rows", sampled.size(), step.wanted.size()));
  }
  for (size_t i = 0; i < sampled.size(); ++i) {
    const Wanted& want = step.wanted[i];
    StepResultRow& out = result.rows[want.plan_row];
    if (want.sample.scored_token >= 0) out.prompt_scored.push_back(std::move(sampled[i].scored));
    if (!want.sample.samples) continue;
    const TokenId token = sampled[i].sampled.id;
    if (token < 0 || token >= config_.vocab) {
      return absl::InternalError(absl::StrFormat("the sampler chose token %d of a vocabulary of %d",
                                                 token, config_.vocab));
    }
    Sequence& sequence = *step.sequences[want.plan_row];
    sequence.tokens.push_back(token);
    sequence.coming.erase(sequence.coming.begin());
    out.sampled.push_back(std::move(sampled[i].sampled));
  }
  return absl::OkStatus();
}

void Executor::Abandon() {
  runner_.stream().Synchronize().IgnoreError();
  in_flight_.clear();
}

}  // namespace lapidary
