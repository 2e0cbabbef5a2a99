// The ranks as the scheduler's tests see them: they know only the plans they received, and check
// that each plan can be carried out. No page has two owners, nothing reads a page that was given
// away, no row reads a token that does not exist.
//
// The model is a function of request and position, so what a request must get is known beforehand.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "engine/kv_manager.h"
#include "engine/scheduler.h"

namespace lapidary {

// What every request samples at a position, whoever computes it and when.
inline TokenId TokenAt(RequestId id, int32_t position) {
  return static_cast<TokenId>((id.value * 7919 + static_cast<uint64_t>(position) * 104729) % 97);
}

class ShadowRanks {
 public:
  explicit ShadowRanks(const SchedulerConfig& config) : config_(config) {}

  void Apply(const StepPlan& plan) {
    for (RequestId id : plan.finished) {
      ASSERT_TRUE(sequences_.contains(id)) << "forget of unknown " << id.value;
      ASSERT_TRUE(sequences_[id].starts_in_flight.empty()) << id.value << " is in flight";
      sequences_.erase(id);
    }
    for (const NewSequence& sequence : plan.added) {
      ASSERT_FALSE(sequences_.contains(sequence.id)) << sequence.id.value << " added twice";
      Sequence& added = sequences_[sequence.id];
      added.tokens = sequence.tokens;
      added.prompt_len = sequence.prompt_len;
      added.needs_host_mask = sequence.needs_host_mask;
    }
    int32_t tokens = 0;
    std::set<RequestId> seen;
    for (const PlanRow& row : plan.rows) {
      ASSERT_TRUE(seen.insert(row.seq).second) << "two rows of one sequence";
      ASSERT_GT(row.len, 0);
      tokens += row.len;
      CheckInput(row);
      if (testing::Test::HasFatalFailure()) return;
      TakePages(row);
      if (testing::Test::HasFatalFailure()) return;
    }
    ASSERT_LE(tokens, config_.max_step_tokens);
    ASSERT_LE(static_cast<int32_t>(plan.rows.size()), config_.max_running);
    // All rows run in one step: check reads after all writers have their pages.
    for (const PlanRow& row : plan.rows) CheckReads(row);
    in_flight_.push_back(plan);
  }

  // Completes the oldest step.
  StepResult Complete() {
    const StepPlan plan = std::move(in_flight_.front());
    in_flight_.pop_front();
    StepResult result;
    result.step = plan.step;
    for (const PlanRow& row : plan.rows) {
      StepResultRow got;
      got.seq = row.seq;
      const int32_t end = row.start + row.len;
      Sequence& sequence = sequences_.at(row.seq);
      if (row.logits == LogitsMask::kAll) {
        for (int32_t i = row.start + 1; i <= std::min(end, sequence.prompt_len - 1); ++i) {
          ScoredToken scored;
          scored.id = i;
          got.prompt_scored.push_back(scored);
        }
      }
      sequence.starts_in_flight.pop_front();
      if (row.samples) {
        ScoredToken token;
        token.id = TokenAt(row.seq, end);
        got.sampled.push_back(token);
        sequence.tokens.push_back(token.id);
        --sequence.samples_in_flight;
      }
      result.rows.push_back(std::move(got));
    }
    return result;
  }

  size_t in_flight() const { return in_flight_.size(); }

 private:
  struct Sequence {
    std::vector<TokenId> tokens;
    int32_t prompt_len = 0;
    bool needs_host_mask = false;
    std::array<std::vector<PageId>, kKvFamilies> table;
    int32_t scheduled = 0;
    int32_t samples_in_flight = 0;
    std::deque<int32_t> starts_in_flight;
    // The first position that is still to be computed: no query before it will run.
    int32_t next_query() const {
      return starts_in_flight.empty() ? scheduled : starts_in_flight.front();
    }
  };
  struct Owner {
    RequestId seq;
    int32_t entry;
  };

  // A row reads tokens that are known, or the one token that a step in flight samples.
  void CheckInput(const PlanRow& row) {
    ASSERT_TRUE(sequences_.contains(row.seq)) << row.seq.value;
    Sequence& sequence = sequences_[row.seq];
    ASSERT_EQ(row.start, sequence.scheduled);
    const int32_t end = row.start + row.len;
    const auto known = static_cast<int32_t>(sequence.tokens.size());
    if (row.source == InputSource::kKnown) {
      ASSERT_EQ(sequence.samples_in_flight, 0) << "two rows sample after the same token";
      ASSERT_LE(end, known) << "an id that does not exist";
    } else {
      ASSERT_EQ(row.len, 1);
      ASSERT_EQ(end, known + sequence.samples_in_flight);
      ASSERT_FALSE(sequence.needs_host_mask) << "two deep with a mask from the host";
      CheckSource(row);
    }
    ASSERT_EQ(row.needs_host_mask, row.samples && sequence.needs_host_mask);
    if (row.samples) {
      ASSERT_EQ(end, known + sequence.samples_in_flight) << "samples before the end";
      ++sequence.samples_in_flight;
    }
  }

  void CheckSource(const PlanRow& row) {
    for (const StepPlan& plan : in_flight_) {
      if (plan.step != row.source_step) continue;
      ASSERT_LT(row.source_row, static_cast<int32_t>(plan.rows.size()));
      const PlanRow& source = plan.rows[row.source_row];
      ASSERT_EQ(source.seq, row.seq);
      ASSERT_TRUE(source.samples);
      ASSERT_EQ(source.start + source.len, row.start);
      return;
    }
    FAIL() << "step " << row.source_step << " is not in flight";
  }

  void TakePages(const PlanRow& row) {
    Sequence& sequence = sequences_[row.seq];
    const int32_t end = row.start + row.len;
    for (int f = 0; f < kKvFamilies; ++f) {
      for (PageId page : row.pages_added[f]) {
        ASSERT_GE(page.value, 0);
        ASSERT_LT(page.value, config_.pages[f]);
        if (const auto it = owners_[f].find(page); it != owners_[f].end()) {
          CheckUnread(f, page, it->second);
        }
        const auto entry = static_cast<int32_t>(sequence.table[f].size());
        owners_[f][page] = Owner{row.seq, entry};
        sequence.table[f].push_back(page);
      }
      const bool present = f == 0 ? config_.window > 0 : config_.pages[f] > 0;
      ASSERT_EQ(static_cast<int32_t>(sequence.table[f].size()), present ? PagesFor(end) : 0);
    }
    sequence.scheduled = end;
    sequence.starts_in_flight.push_back(row.start);
  }

  // A page may change hands only when its last owner is gone or will never read it again.
  void CheckUnread(int family, PageId page, const Owner& last) {
    const auto it = sequences_.find(last.seq);
    if (it == sequences_.end()) return;
    // It may have been forgotten and added anew: then its table says something else.
    const Sequence& sequence = it->second;
    if (last.entry >= static_cast<int32_t>(sequence.table[family].size())) return;
    if (sequence.table[family][last.entry] != page) return;
    ASSERT_EQ(family, static_cast<int>(KvFamily::kSliding)) << "a global page of a live sequence";
    const int32_t last_position = last.entry * kPageTokens + kPageTokens - 1;
    ASSERT_LT(last_position, sequence.next_query() - config_.window + 1)
        << "sequence " << last.seq.value << " still reads page entry " << last.entry;
  }

  void CheckReads(const PlanRow& row) {
    const Sequence& sequence = sequences_.at(row.seq);
    for (int f = 0; f < kKvFamilies; ++f) {
      const int32_t first_key = f == 0 ? std::max(row.start - config_.window + 1, 0) : 0;
      for (size_t entry = first_key / kPageTokens; entry < sequence.table[f].size(); ++entry) {
        const Owner& owner = owners_[f].at(sequence.table[f][entry]);
        ASSERT_EQ(owner.seq, row.seq) << "page of another";
        ASSERT_EQ(owner.entry, static_cast<int32_t>(entry));
      }
    }
  }

  const SchedulerConfig config_;
  std::map<RequestId, Sequence> sequences_;
  std::array<std::map<PageId, Owner>, kKvFamilies> owners_;
  std::deque<StepPlan> in_flight_;
};

// What one request's client sees, held against what the request would get alone.
class ShadowClient {
 public:
  ShadowClient() = default;
  ShadowClient(const EngineRequest& request, int32_t max_context)
      : id_(request.sequence.id),
        prompt_len_(request.sequence.prompt_len),
        max_tokens_(request.sequence.sampling.max_tokens),
        max_context_(max_context),
        stops_(request.sequence.sampling.stop_ids),
        tokens_(request.sequence.tokens.begin() + request.sequence.prompt_len,
                request.sequence.tokens.end()),
        resumed_(static_cast<int32_t>(tokens_.size())) {
    const bool scores = request.sequence.sampling.prompt_logprobs >= 0 && resumed_ == 0;
    scored_to_ = scores ? 0 : prompt_len_ - 1;
  }

  void Take(const EngineEvent& event) {
    ASSERT_EQ(finish_, FinishReason::kNone) << id_.value << " ended twice";
    if (event.finish == FinishReason::kError) {
      ASSERT_EQ(event.error.code(), absl::StatusCode::kDeadlineExceeded) << event.error;
    }
    for (const ScoredToken& scored : event.prompt_scored) {
      ASSERT_EQ(scored.id, ++scored_to_) << "scored out of order";
    }
    for (const ScoredToken& token : event.tokens) {
      ASSERT_EQ(token.id, TokenAt(id_, prompt_len_ + static_cast<int32_t>(tokens_.size())));
      tokens_.push_back(token.id);
    }
    finish_ = event.finish;
  }

  // It has ended; unless it was cancelled or late, exactly where it would end alone.
  void CheckEnd() const {
    SCOPED_TRACE(testing::Message() << "request " << id_.value);
    ASSERT_NE(finish_, FinishReason::kNone) << "never ended";
    if (finish_ == FinishReason::kCancelled || finish_ == FinishReason::kError) return;
    EXPECT_EQ(scored_to_, prompt_len_ - 1);
    const int32_t end = std::min(prompt_len_ + max_tokens_, max_context_);
    int32_t length = prompt_len_ + resumed_;
    FinishReason finish = FinishReason::kLength;
    while (length < end) {
      const TokenId token = TokenAt(id_, length++);
      if (std::find(stops_.begin(), stops_.end(), token) == stops_.end()) continue;
      finish = FinishReason::kStop;
      break;
    }
    EXPECT_EQ(finish_, finish);
    EXPECT_EQ(prompt_len_ + static_cast<int32_t>(tokens_.size()), length);
  }

  const std::vector<TokenId>& tokens() const { return tokens_; }
  FinishReason finish() const { return finish_; }
  int32_t most_tokens() const { return prompt_len_ + max_tokens_; }

 private:
  RequestId id_{0};
  int32_t prompt_len_ = 0;
  int32_t max_tokens_ = 0;
  int32_t max_context_ = 0;
  std::vector<TokenId> stops_;
  std::vector<TokenId> tokens_;  // generated, those from before included
  int32_t resumed_ = 0;          // of them, from before
  int32_t scored_to_ = 0;        // the last prompt position that was scored
  FinishReason finish_ = FinishReason::kNone;
};

}  // namespace lapidary
