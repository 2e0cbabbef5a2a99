#include "worker/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/sampling/philox.h"
#include "kernels/sampling/topk.h"
#include "worker/sampler_draw.h"
#include "worker/sampler_edits.h"
#include "worker/sampler_filter.h"
#include "worker/sampler_math.h"
#include "worker/sampler_threshold.h"

namespace lapidary {

namespace {

// What a rank says about its shard of a row's logits as the model gave them. In the message it is
// followed by the row's best raw candidates and its best edited candidates.
struct RawSummary {
  ShardNorm norm;
  float scored = 0;  // the logit of scored_token, if it is in the shard
  int32_t has_scored = 0;
};

// One row of a step, and where it stands in the message.
struct RowWork {
  SampleRow ask;
  Filter filter;
  uint64_t bits = 0;
  int raw_count = 0;     // raw candidates; 0: no logprobs wanted
  int edited_count = 0;  // edited candidates; 0: does not sample
  int64_t offset = 0;    // in a rank's message
  std::vector<LogitEdit> edits;
  bool wants_raw() const { return raw_count > 0; }
  bool by_threshold() const { return ask.samples && filter.candidates() == 0; }
};

float Logprob(float logit, double log_sum) {
  const auto logprob = static_cast<float>(static_cast<double>(logit) - log_sum);
  // Infinite logits have no probabilities; JSON has no infinities.
  return std::isfinite(logprob) ? logprob : std::numeric_limits<float>::lowest();
}

// The work of one Sample() on one rank. Created on the caller's thread, which fixes the layout of
// all messages; run on the stream's.
class SampleStep {
 public:
  SampleStep(ThreadTeam& team, Communicator& comm, int64_t vocab, const LogitsView& logits,
             const std::vector<SampleRow>& rows, std::vector<SampledRow>* out);

  void SelectLocal();
  void MergeCandidates();
  void Finish();

  uint8_t* message() { return messages_.data(); }
  uint8_t* own_message() { return Message(rank_); }
  int64_t message_bytes() const { return message_bytes_; }
  const std::shared_ptr<std::vector<ThresholdRow>>& threshold_rows() { return threshold_rows_; }

 private:
  uint8_t* Message(int rank) { return messages_.data() + rank * message_bytes_; }
  static int64_t RowBytes(const RowWork& row) {
    return static_cast<int64_t>(sizeof(RawSummary)) +
           static_cast<int64_t>(sizeof(Candidate)) * row.raw_count +
           static_cast<int64_t>(sizeof(TokenCandidate)) * row.edited_count;
  }
  float* Logits(const RowWork& row) const {
    return logits_.data + int64_t{row.ask.logits_row} * logits_.stride;
  }
  RawSummary& Summary(int rank, const RowWork& row) {
    return *reinterpret_cast<RawSummary*>(Message(rank) + row.offset);
  }
  Candidate* RawCandidates(int rank, const RowWork& row) {
    return reinterpret_cast<Candidate*>(Message(rank) + row.offset + sizeof(RawSummary));
  }
  TokenCandidate* EditedCandidates(int rank, const RowWork& row) {
    return reinterpret_cast<TokenCandidate*>(RawCandidates(rank, row) + row.raw_count);
  }
  RowSelection Selection(const RowWork& row, int count) const;
  void SummarizeRaw(const RowWork& row, const RowSelection& selected);
  void SetEdited(const RowWork& row, const std::vector<Candidate>& best);
  template <class AnyCandidate>
  std::vector<AnyCandidate> Merged(int count,
                                   AnyCandidate* (SampleStep::*list)(int, const RowWork&),
                                   const RowWork& row);
  void Score(const RowWork& row, SampledRow* out);

  ThreadTeam& team_;
  const int rank_, ranks_;
  const LogitsView logits_;
  const int64_t columns_;  // of the shard, without padding
  std::vector<RowWork> rows_;
  std::vector<SampledRow>* const out_;
  int64_t message_bytes_ = 0;
  std::vector<uint8_t> messages_;  // [ranks]
  std::shared_ptr<std::vector<ThresholdRow>> threshold_rows_;
};

SampleStep::SampleStep(ThreadTeam& team, Communicator& comm, int64_t vocab,
                       const LogitsView& logits, const std::vector<SampleRow>& rows,
                       std::vector<SampledRow>* out)
    : team_(team),
      rank_(comm.rank().value),
      ranks_(comm.size()),
      logits_(logits),
      columns_(std::max<int64_t>(0, std::min(logits.vocab.end, vocab) - logits.vocab.begin)),
      out_(out),
      threshold_rows_(std::make_shared<std::vector<ThresholdRow>>()) {
  for (const SampleRow& ask : rows) {
    RowWork row;
    row.ask = ask;
    const bool raw = ask.wants_logprob || ask.top_logprobs > 0 || ask.scored_token >= 0;
    const int64_t top = std::clamp<int64_t>(ask.top_logprobs, 0, vocab);
    row.raw_count = raw ? std::max(1, static_cast<int>(top)) : 0;
    if (ask.samples) {
      row.filter = MakeFilter(*ask.params, vocab);
      row.bits = UniformBits(ask.params->seed, static_cast<uint32_t>(ask.position), ask.choice,
                             RandomPurpose::kSample);
      row.edited_count = std::max(1, row.filter.candidates());
    }
    row.offset = message_bytes_;
    message_bytes_ += (RowBytes(row) + 7) / 8 * 8;
    if (row.by_threshold()) {
      ThresholdRow threshold_row;
      threshold_row.columns = columns_;
      threshold_row.first_id = static_cast<TokenId>(logits.vocab.begin);
      threshold_row.filter = row.filter;
      threshold_row.bits = row.bits;
      threshold_rows_->push_back(threshold_row);
    }
    rows_.push_back(std::move(row));
  }
  messages_.resize(static_cast<size_t>(ranks_) * message_bytes_);
  auto threshold_row = threshold_rows_->begin();
  for (const RowWork& row : rows_) {  // which no longer move
    if (!row.by_threshold()) continue;
    threshold_row->logits = Logits(row);
    threshold_row->edits = &row.edits;
    ++threshold_row;
  }
}

RowSelection SampleStep::Selection(const RowWork& row, int count) const {
  RowSelection selection;
  selection.logits = Logits(row);
  selection.n = columns_;
  selection.first_id = static_cast<int32_t>(logits_.vocab.begin);
  selection.top_k = count;
  return selection;
}

// The stream's first piece: all that this shard says about each row.
void SampleStep::SelectLocal() {
  std::vector<RowSelection> raw;
  for (const RowWork& row : rows_) {
    raw.push_back(Selection(row, row.raw_count));
    raw.back().wants_norm = row.wants_raw();
  }
  SelectRows(team_, raw);
  // Without edits a raw list that is long enough has the candidates (greedy with logprobs).
  std::vector<RowSelection> edited;
  std::vector<size_t> edited_rows;
  for (size_t i = 0; i < rows_.size(); ++i) {
    RowWork& row = rows_[i];
    if (row.wants_raw()) SummarizeRaw(row, raw[i]);
    if (!row.ask.samples) continue;
    Range vocab = logits_.vocab;
    vocab.end = vocab.begin + columns_;
    row.edits = MakeEdits(row.ask, vocab, Logits(row));
    ApplyEdits(row.edits, Logits(row));
    if (row.edits.empty() && row.edited_count <= row.raw_count) {
      SetEdited(row, raw[i].best);
    } else {
      edited.push_back(Selection(row, row.edited_count));
      edited_rows.push_back(i);
    }
  }
  SelectRows(team_, edited);
  for (size_t i = 0; i < edited.size(); ++i) SetEdited(rows_[edited_rows[i]], edited[i].best);
}

void SampleStep::SummarizeRaw(const RowWork& row, const RowSelection& selected) {
  RawSummary summary;
  summary.norm = selected.norm;
  const int64_t column = row.ask.scored_token - logits_.vocab.begin;
  if (row.ask.scored_token >= 0 && column >= 0 && column < columns_) {
    summary.scored = Logits(row)[column];
    summary.has_scored = 1;
  }
  Summary(rank_, row) = summary;
  Candidate none;
  none.id = -1;
  std::fill_n(RawCandidates(rank_, row), row.raw_count, none);
  std::copy(selected.best.begin(), selected.best.end(), RawCandidates(rank_, row));
}

void SampleStep::SetEdited(const RowWork& row, const std::vector<Candidate>& best) {
  TokenCandidate* list = EditedCandidates(rank_, row);
  std::fill_n(list, row.edited_count, TokenCandidate());
  const size_t count = std::min(best.size(), static_cast<size_t>(row.edited_count));
  for (size_t i = 0; i < count; ++i) {
    list[i].value = best[i].logit;
    list[i].id = best[i].id;
    list[i].raw = RawLogit(row.edits, Logits(row), best[i].id - logits_.vocab.begin);
  }
}

// The best `count` of all ranks' lists of a row.
template <class AnyCandidate>
std::vector<AnyCandidate> SampleStep::Merged(int count,
                                             AnyCandidate* (SampleStep::*list)(int, const RowWork&),
                                             const RowWork& row) {
  std::vector<AnyCandidate> merged;
  for (int r = 0; r < ranks_; ++r) {
    const AnyCandidate* candidates = (this->*list)(r, row);
    for (int i = 0; i < count && candidates[i].id >= 0; ++i) merged.push_back(candidates[i]);
  }
  std::sort(merged.begin(), merged.end(),
            [](const AnyCandidate& a, const AnyCandidate& b) { return Better(a, b); });
  if (merged.size() > static_cast<size_t>(count)) merged.resize(count);
  return merged;
}

// All ranks' messages are here. Rows by candidates are decided; the others learn their best token.
void SampleStep::MergeCandidates() {
  out_->assign(rows_.size(), SampledRow());
  size_t next_threshold_row = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const RowWork& row = rows_[i];
    SampledRow& out = (*out_)[i];
    out.sampled.id = out.scored.id = -1;
    if (!row.ask.samples) continue;
    const std::vector<TokenCandidate> best =
        Merged(row.edited_count, &SampleStep::EditedCandidates, row);
    if (row.by_threshold()) {
      if (!best.empty()) (*threshold_rows_)[next_threshold_row].best = best.front();
      ++next_threshold_row;
    } else if (!best.empty()) {
      const TokenCandidate drawn = Draw(row.filter, row.bits, best);
      out.sampled.id = drawn.id;
      out.sampled.logprob = drawn.raw;  // a logit until Score()
    }
  }
}

void SampleStep::Finish() {
  size_t next_threshold_row = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const RowWork& row = rows_[i];
    SampledRow& out = (*out_)[i];
    if (row.by_threshold()) {
      const ThresholdRow& drawn = (*threshold_rows_)[next_threshold_row++];
      out.sampled.id = drawn.id;
      out.sampled.logprob = drawn.raw;
    }
    if (row.ask.samples && out.sampled.id < 0) out.sampled.id = 0;  // nothing is above -inf
    if (row.ask.samples && row.ask.id_out != nullptr) *row.ask.id_out = out.sampled.id;
    if (row.ask.samples && row.ask.counted_in != nullptr) {
      ++row.ask.counted_in->output[out.sampled.id];
    }
    Score(row, &out);
  }
}

// Turns logits into what was asked to be known.
void SampleStep::Score(const RowWork& row, SampledRow* out) {
  if (!row.wants_raw()) {
    out->sampled.logprob = 0;
    return;
  }
  ShardNorm norm;
  for (int r = 0; r < ranks_; ++r) norm = Merge(norm, Summary(r, row).norm, 1.0f);
  const double log_sum = LogSumExp(norm, 1.0f);
  std::vector<TokenLogprob> top;
  if (row.ask.top_logprobs > 0) {
    for (const Candidate& c : Merged(row.raw_count, &SampleStep::RawCandidates, row)) {
      TokenLogprob entry;
      entry.id = c.id;
      entry.logprob = Logprob(c.logit, log_sum);
      top.push_back(entry);
    }
  }
  if (row.ask.scored_token >= 0) {
    float logit = -std::numeric_limits<float>::infinity();
    for (int r = 0; r < ranks_; ++r) {
      if (Summary(r, row).has_scored != 0) logit = Summary(r, row).scored;
    }
    out->scored.id = row.ask.scored_token;
    out->scored.logprob = Logprob(logit, log_sum);
    out->scored.top = top;
  }
  if (row.ask.samples) {
    out->sampled.logprob = Logprob(out->sampled.logprob, log_sum);
    out->sampled.top = std::move(top);
  }
}

class ShardedSampler final : public Sampler {
 public:
  ShardedSampler(ThreadTeam& team, Communicator& comm, int64_t vocab)
      : team_(team), comm_(comm), vocab_(vocab) {}

  void Sample(const LogitsView& logits, std::vector<SampleRow> rows, Stream& stream,
              std::vector<SampledRow>* out) override {
    const auto step = std::make_shared<SampleStep>(team_, comm_, vocab_, logits, rows, out);
    const auto run = [&](auto piece) {
      stream.Enqueue([step, piece] {
        piece(*step);
        return absl::OkStatus();
      });
    };
    run([](SampleStep& s) { s.SelectLocal(); });
    comm_.AllGather(step->own_message(), step->message_bytes(), step->message(), stream);
    run([](SampleStep& s) { s.MergeCandidates(); });
    if (!step->threshold_rows()->empty()) {
      ThresholdSampler(team_, comm_).Enqueue(step->threshold_rows(), stream);
    }
    run([](SampleStep& s) { s.Finish(); });
  }

 private:
  ThreadTeam& team_;
  Communicator& comm_;
  const int64_t vocab_;
};

}  // namespace

std::unique_ptr<Sampler> Sampler::Create(ThreadTeam& team, Communicator& comm, int64_t vocab) {
  return std::make_unique<ShardedSampler>(team, comm, vocab);
}

}  // namespace lapidary
