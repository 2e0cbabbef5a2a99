// Random traces against a shadow of the ranks, which knows only the plans it received. Whatever the
// trace: no page has two owners, nothing reads a freed page, budgets hold, each request ends once
// with the tokens it would get alone, and there is always progress.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "engine/kv_manager.h"
#include "engine/scheduler.h"

namespace lapidary {
namespace {

// What every request samples at a position, whoever computes it and when.
TokenId TokenAt(RequestId id, int32_t position) {
  return static_cast<TokenId>((id.value * 7919 + static_cast<uint64_t>(position) * 104729) % 97);
}

// What the ranks know, and who owns each page according to the plans.
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
      sequences_[sequence.id].tokens = sequence.tokens;
    }
    int32_t tokens = 0;
    std::set<RequestId> seen;
    for (const PlanRow& row : plan.rows) {
      ASSERT_TRUE(seen.insert(row.seq).second) << "two rows of one sequence";
      ASSERT_GT(row.len, 0);
      tokens += row.len;
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
  StepResult Complete(const std::map<RequestId, int32_t>& prompt_len) {
    const StepPlan plan = in_flight_.front();
    in_flight_.pop_front();
    StepResult result;
    result.step = plan.step;
    for (const PlanRow& row : plan.rows) {
      StepResultRow got;
      got.seq = row.seq;
      const int32_t end = row.start + row.len;
      if (row.logits == LogitsMask::kAll) {
        for (int32_t i = row.start + 1; i <= std::min(end, prompt_len.at(row.seq) - 1); ++i) {
          ScoredToken scored;
          scored.id = i;
          got.prompt_scored.push_back(scored);
        }
      }
      Sequence& sequence = sequences_.at(row.seq);
      sequence.starts_in_flight.pop_front();
      if (row.samples) {
        ScoredToken token;
        token.id = TokenAt(row.seq, end);
        got.sampled.push_back(token);
        sequence.tokens.push_back(token.id);
      }
      result.rows.push_back(std::move(got));
    }
    return result;
  }

  size_t in_flight() const { return in_flight_.size(); }
  const std::vector<TokenId>& tokens(RequestId id) const { return sequences_.at(id).tokens; }

 private:
  struct Sequence {
    std::vector<TokenId> tokens;
    std::array<std::vector<PageId>, kKvFamilies> table;
    int32_t scheduled = 0;
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

  void TakePages(const PlanRow& row) {
    ASSERT_TRUE(sequences_.contains(row.seq)) << row.seq.value;
    Sequence& sequence = sequences_[row.seq];
    ASSERT_EQ(row.start, sequence.scheduled);
    const int32_t end = row.start + row.len;
    ASSERT_LE(end, static_cast<int32_t>(sequence.tokens.size())) << "an id that does not exist";
    ASSERT_EQ(row.samples && end < static_cast<int32_t>(sequence.tokens.size()), false);
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

// A client's view of one request.
struct Client {
  int32_t prompt_len = 0;
  int32_t generated_before = 0;
  int32_t max_tokens = 0;
  int32_t max_context = 0;
  TokenId stop = -1;
  bool scores = false;
  bool cancelled = false;
  std::vector<TokenId> tokens;  // generated, the prefix included
  int32_t scored_to = 0;        // the last prompt position that was scored
  FinishReason finish = FinishReason::kNone;
};

class Trace {
 public:
  explicit Trace(uint32_t seed) : random_(seed) {
    config_.window = Pick(4) == 0 ? 0 : 1 + Pick(60);
    config_.pages[0] = config_.window == 0 ? 0 : PagesSpanned(config_.window) + Pick(12);
    config_.pages[1] = config_.window > 0 && Pick(6) == 0 ? 0 : 4 + Pick(20);
    config_.max_context = 30 + Pick(200);
    config_.max_running = 1 + Pick(9);
    config_.max_step_tokens = 1 + Pick(70);
    config_.max_queued = 5 + Pick(20);
    config_.max_in_flight = 1 + Pick(2);
    scheduler_ = Scheduler::Create(config_);
    ranks_ = std::make_unique<ShadowRanks>(config_);
  }

  void Run() {
    constexpr int kActions = 400;
    for (int i = 0; i < kActions && !testing::Test::HasFatalFailure(); ++i) {
      const int what = Pick(10);
      if (Pick(8) == 0) PauseOrResume();
      if (what < 2) Submit();
      if (what == 2) Cancel();
      if (what > 2 && what < 7) Plan();
      if (what >= 7) Complete();
      CheckStats();
    }
    // Nothing new comes and all are read: everything ends, each step computing something.
    for (RequestId id : paused_) scheduler_->Resume(id);
    paused_.clear();
    int64_t most_steps = 10;
    for (const auto& [id, client] : clients_) {
      // Preemption recomputes, and the longest wait is for all others one after the other.
      most_steps += 4 * (client.prompt_len + client.max_tokens + 1);
    }
    int64_t steps = 0;
    while (!scheduler_->idle() && !testing::Test::HasFatalFailure()) {
      Plan();
      if (ranks_->in_flight() > 0) Complete();
      ASSERT_LT(++steps, most_steps) << "no end in sight";
    }
    TakeEvents(scheduler_->TakeEvents());
    CheckStats();
    EXPECT_EQ(scheduler_->stats().pages_used[0] + scheduler_->stats().pages_used[1], 0);
    for (const auto& [id, client] : clients_) CheckEnd(id, client);
    EXPECT_EQ(scheduler_->stats().paused, 0);
    preemptions = scheduler_->stats().preemptions;
  }

  uint64_t preemptions = 0;
  int resumed_later = 0;  // added anew after a pause

 private:
  int32_t Pick(int32_t below) { return static_cast<int32_t>(random_() % below); }

  void Submit() {
    Client client;
    EngineRequest request;
    NewSequence& sequence = request.sequence;
    sequence.id = RequestId{next_id_++};
    client.prompt_len = 1 + Pick(Pick(3) == 0 ? 150 : 30);
    client.max_tokens = Pick(8) == 0 ? 0 : 1 + Pick(60);
    client.generated_before = client.max_tokens > 5 && Pick(4) == 0 ? Pick(5) : 0;
    client.stop = Pick(2) == 0 ? Pick(97) : -1;
    client.scores = Pick(3) == 0;
    client.max_context = config_.max_context;
    sequence.prompt_len = client.prompt_len;
    for (int32_t i = 0; i < client.prompt_len + client.generated_before; ++i) {
      sequence.tokens.push_back(TokenAt(sequence.id, i));
    }
    client.tokens.assign(sequence.tokens.begin() + client.prompt_len, sequence.tokens.end());
    if (client.generated_before > 0 || !client.scores) client.scored_to = client.prompt_len - 1;
    sequence.sampling.max_tokens = client.max_tokens;
    if (client.stop >= 0) sequence.sampling.stop_ids = {client.stop};
    if (client.scores) sequence.sampling.prompt_logprobs = 0;
    const absl::Status status = scheduler_->Submit(request, 0);
    if (status.ok()) {
      prompt_len_[sequence.id] = client.prompt_len;
      clients_[sequence.id] = client;
      EXPECT_EQ(scheduler_->Submit(request, 0).code(), absl::StatusCode::kAlreadyExists);
    } else {
      EXPECT_TRUE(status.code() == absl::StatusCode::kInvalidArgument ||
                  status.code() == absl::StatusCode::kResourceExhausted)
          << status;
    }
  }

  void Cancel() {
    if (next_id_ == 1) return;
    const RequestId id{1 + random_() % (next_id_ - 1)};
    const auto it = clients_.find(id);
    if (it != clients_.end() && it->second.finish == FinishReason::kNone) {
      it->second.cancelled = true;
    }
    scheduler_->Cancel(id);
    if (Pick(2) == 0) TakeEvents(scheduler_->TakeEvents());
  }

  void PauseOrResume() {
    if (next_id_ == 1) return;
    const RequestId id{1 + random_() % (next_id_ - 1)};
    if (paused_.erase(id) > 0) {
      scheduler_->Resume(id);
      return;
    }
    scheduler_->Pause(id);
    if (Pick(4) == 0) scheduler_->Pause(id);  // twice is once
    paused_.insert(id);
    ever_paused_.insert(id);
  }

  void Plan() {
    const bool in_flight = ranks_->in_flight() > 0;
    const bool idle = !scheduler_->has_work();
    std::optional<StepPlan> plan = scheduler_->Plan(0);
    if (!plan) {
      ASSERT_TRUE(in_flight || idle) << "work is waiting and nothing was planned";
      return;
    }
    ASSERT_EQ(plan->epoch, config_.epoch);
    ASSERT_FALSE(plan->rows.empty());
    ASSERT_LT(static_cast<int32_t>(ranks_->in_flight()), config_.max_in_flight);
    for (const NewSequence& sequence : plan->added) {
      const Client& client = clients_.at(sequence.id);
      const std::vector<TokenId> generated(sequence.tokens.begin() + sequence.prompt_len,
                                           sequence.tokens.end());
      ASSERT_EQ(generated, client.tokens) << "resumed with other tokens than were given";
      // First come, first served, but for those that were paused.
      const bool was_paused = ever_paused_.contains(sequence.id);
      if (admitted_.insert(sequence.id).second) {
        if (was_paused) continue;
        ASSERT_GT(sequence.id, last_admitted_);
        last_admitted_ = sequence.id;
      } else if (was_paused) {
        ++resumed_later;
      }
    }
    for (const PlanRow& row : plan->rows) {
      ASSERT_FALSE(paused_.contains(row.seq)) << "a row for a paused request";
    }
    ranks_->Apply(*plan);
  }

  void Complete() {
    if (ranks_->in_flight() == 0) return;
    TakeEvents(scheduler_->Complete(ranks_->Complete(prompt_len_), 0));
  }

  void TakeEvents(const std::vector<EngineEvent>& events) {
    for (const EngineEvent& event : events) {
      Client& client = clients_.at(event.id);
      ASSERT_EQ(client.finish, FinishReason::kNone) << event.id.value << " ended twice";
      ASSERT_NE(event.finish, FinishReason::kError) << event.error;
      for (const ScoredToken& scored : event.prompt_scored) {
        ASSERT_EQ(scored.id, ++client.scored_to) << "scored out of order";
      }
      for (const ScoredToken& token : event.tokens) {
        const int32_t position = client.prompt_len + static_cast<int32_t>(client.tokens.size());
        ASSERT_EQ(token.id, TokenAt(event.id, position));
        client.tokens.push_back(token.id);
      }
      client.finish = event.finish;
    }
  }

  void CheckEnd(RequestId id, const Client& client) {
    SCOPED_TRACE(testing::Message() << "request " << id.value);
    ASSERT_NE(client.finish, FinishReason::kNone) << "never ended";
    if (client.finish == FinishReason::kCancelled) {
      EXPECT_TRUE(client.cancelled);
      return;
    }
    EXPECT_EQ(client.scored_to, client.prompt_len - 1);
    // Where it would end alone.
    const int32_t end = std::min(client.prompt_len + client.max_tokens, client.max_context);
    int32_t length = client.prompt_len + client.generated_before;
    FinishReason finish = FinishReason::kLength;
    while (length < end) {
      if (TokenAt(id, length++) != client.stop) continue;
      finish = FinishReason::kStop;
      break;
    }
    EXPECT_EQ(client.finish, finish);
    EXPECT_EQ(client.prompt_len + static_cast<int32_t>(client.tokens.size()), length);
  }

  void CheckStats() {
    const EngineStats stats = scheduler_->stats();
    for (int f = 0; f < kKvFamilies; ++f) {
      ASSERT_EQ(stats.pages_total[f], config_.pages[f]);
      ASSERT_GE(stats.pages_used[f], 0);
      ASSERT_LE(stats.pages_used[f], config_.pages[f]);
    }
    ASSERT_LE(stats.running, config_.max_running);
    ASSERT_EQ(stats.waiting == 0, stats.waiting_tokens == 0);
  }

  std::mt19937 random_;
  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ShadowRanks> ranks_;
  std::map<RequestId, Client> clients_;
  std::map<RequestId, int32_t> prompt_len_;
  std::set<RequestId> admitted_;
  std::set<RequestId> paused_, ever_paused_;  // ended ones among them
  RequestId last_admitted_{0};
  uint64_t next_id_ = 1;
};

TEST(SchedulerProperty, HoldsOverRandomTraces) {
  constexpr uint32_t kFirstSeed = 1, kTraces = 1500;
  uint64_t preemptions = 0;
  int resumed = 0;
  for (uint32_t seed = kFirstSeed; seed < kFirstSeed + kTraces; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Trace trace(seed);
    trace.Run();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    preemptions += trace.preemptions;
    resumed += trace.resumed_later;
  }
  EXPECT_GT(preemptions, 100u);  // the traces reach the interesting part
  EXPECT_GT(resumed, 100);
}

}  // namespace
}  // namespace lapidary
