// The scheduler with a prefix cache over random traces of requests that begin alike, against a
// device that remembers what was written where. Whatever the trace: a query reads what its request
// would have computed alone, no page is written while another sequence or a step in flight reads
// it, and every request gets the tokens it gets without a cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>

#include "engine/kv_manager.h"
#include "engine/scheduler.h"

namespace lapidary {
namespace {

// What follows some tokens, whoever asks: equal prompts get equal answers.
TokenId Next(std::span<const TokenId> tokens) {
  uint32_t sum = 1;
  for (const TokenId token : tokens) sum = sum * 31 + static_cast<uint32_t>(token);
  return static_cast<TokenId>(sum % 5);
}

using Slot = std::pair<int32_t, int32_t>;  // page, and position in it

// Executes plans in order, knowing nothing else.
class Device {
 public:
  explicit Device(const SchedulerConfig& config) : config_(config) {}

  void Submit(const StepPlan& plan, const std::map<RequestId, std::string>& keys) {
    for (RequestId id : plan.finished) ASSERT_EQ(sequences_.erase(id), 1u);
    for (const NewSequence& added : plan.added) {
      ASSERT_FALSE(sequences_.contains(added.id));
      ASSERT_EQ(added.cached_len % kPageTokens, 0);
      Sequence& sequence = sequences_[added.id];
      sequence.key = keys.at(added.id);
      sequence.tokens = added.tokens;
      sequence.cached = added.cached_len;
      sequence.prompt_len = added.prompt_len;
      hits += added.cached_len > 0 ? 1 : 0;
    }
    InFlight step;
    for (const PlanRow& row : plan.rows) Begin(row);
    if (testing::Test::HasFatalFailure()) return;
    for (const PlanRow& row : plan.rows) {
      Sequence& sequence = sequences_.at(row.seq);
      ReadAll(row, sequence, step);
      StepResultRow got;
      got.seq = row.seq;
      const int32_t end = row.start + row.len;
      for (int32_t p = row.start; row.logits == LogitsMask::kAll && p < end; ++p) {
        if (p + 1 >= sequence.prompt_len) continue;
        got.prompt_scored.emplace_back();
        got.prompt_scored.back().id = p + 1;
      }
      if (row.samples) {
        got.sampled.emplace_back();
        got.sampled[0].id = Next(sequence.tokens);
        sequence.tokens.push_back(got.sampled[0].id);
      }
      step.result.rows.push_back(std::move(got));
    }
    step.result.step = plan.step;
    in_flight_.push_back(std::move(step));
  }

  StepResult Complete() {
    StepResult result = std::move(in_flight_.front().result);
    in_flight_.pop_front();
    return result;
  }
  size_t in_flight() const { return in_flight_.size(); }

  int hits = 0;

 private:
  struct Sequence {
    std::string key;
    std::vector<TokenId> tokens;
    int32_t cached = 0;  // KV in the pages
    int32_t prompt_len = 0;
    std::array<std::vector<PageId>, kKvFamilies> table;
  };
  struct InFlight {
    StepResult result;
    std::array<std::map<int32_t, std::set<RequestId>>, kKvFamilies> readers;  // of each page
  };

  bool present(int f) const { return f == 0 ? config_.window > 0 : config_.pages[1] > 0; }
  static std::string Content(const Sequence& s, int32_t position) {
    return s.key + ":" + std::string(s.tokens.begin(), s.tokens.begin() + position + 1);
  }

  // Takes the row's pages and writes its tokens.
  void Begin(const PlanRow& row) {
    Sequence& sequence = sequences_.at(row.seq);
    ASSERT_EQ(row.start, sequence.cached);
    const int32_t end = row.start + row.len;
    ASSERT_LE(end, std::ssize(sequence.tokens));
    for (int f = 0; f < kKvFamilies; ++f) {
      if (!present(f)) continue;
      std::vector<PageId>& table = sequence.table[f];
      table.insert(table.end(), row.pages_added[f].begin(), row.pages_added[f].end());
      ASSERT_EQ(std::ssize(table), PagesFor(end));
      for (int32_t p = row.start; p < end; ++p) {
        const int32_t page = table[p / kPageTokens].value;
        ASSERT_LT(page, config_.pages[f]);
        for (const InFlight& step : in_flight_) {
          const auto readers = step.readers[f].find(page);
          if (readers == step.readers[f].end()) continue;
          for (const RequestId reader : readers->second) {
            ASSERT_EQ(reader, row.seq) << "page " << page << " is read by a step in flight";
          }
        }
        content_[f][{page, p % kPageTokens}] = Content(sequence, p);
      }
    }
    sequence.cached = end;
  }

  void ReadAll(const PlanRow& row, const Sequence& sequence, InFlight& step) {
    for (int f = 0; f < kKvFamilies; ++f) {
      if (!present(f)) continue;
      const int32_t first = f == 0 ? std::max(row.start - config_.window + 1, 0) : 0;
      for (int32_t p = first; p < row.start + row.len; ++p) {
        const int32_t page = sequence.table[f][p / kPageTokens].value;
        step.readers[f][page].insert(row.seq);
        ASSERT_EQ((content_[f][{page, p % kPageTokens}]), Content(sequence, p))
            << "request " << row.seq.value << " of " << sequence.tokens.size() << ", family " << f
            << ", position " << p;
      }
    }
  }

  const SchedulerConfig config_;
  std::map<RequestId, Sequence> sequences_;
  std::array<std::map<Slot, std::string>, kKvFamilies> content_;
  std::deque<InFlight> in_flight_;
};

struct Client {
  std::vector<TokenId> tokens;  // prompt and output
  int32_t prompt_len = 0;
  int32_t end_len = 0;
  int32_t scored_to = 0;
  bool scores = false;
  bool cancelled = false;
  FinishReason finish = FinishReason::kNone;
};

class Trace {
 public:
  explicit Trace(uint32_t seed) : random_(seed) {
    config_.prefix_cache = true;
    config_.window = Pick(5) == 0 ? 0 : 1 + Pick(60);
    config_.pages[0] = config_.window == 0 ? 0 : PagesSpanned(config_.window) + Pick(20);
    config_.pages[1] = config_.window > 0 && Pick(6) == 0 ? 0 : 8 + Pick(24);
    config_.max_context = 600;
    config_.max_running = 1 + Pick(6);
    config_.max_step_tokens = 1 + Pick(90);
    config_.max_in_flight = 1 + Pick(2);
    scheduler_ = Scheduler::Create(config_);
    device_ = std::make_unique<Device>(config_);
  }

  void Run() {
    for (int i = 0; i < 300 && !testing::Test::HasFatalFailure(); ++i) {
      const int what = Pick(10);
      if (Pick(30) == 0) PauseAll();
      if (what < 2) Submit();
      if (what == 3 && next_id_ > 1) PauseOrResume();
      if (what == 2 && next_id_ > 1 && Pick(2) == 0) Cancel();
      if (what > 3 && what < 7) Plan();
      if (what >= 7) Complete();
      CheckStats();
    }
    Finish();
  }

  // Everybody stops reading, and keeps pages. Whoever comes then is served none the less.
  void RunAfterAPause() {
    for (int i = 0; i < 60 && !testing::Test::HasFatalFailure(); ++i) {
      if (Pick(4) == 0) Submit();
      Plan();
      Complete();
    }
    PauseAll();
    while (device_->in_flight() > 0) Complete();
    held = scheduler_->stats().pages_used[1];
    SubmitForWholePool();
    for (int i = 0; scheduler_->has_work() && !testing::Test::HasFatalFailure(); ++i) {
      Plan();
      Complete();
      ASSERT_LT(i, 1000) << "no end in sight";
    }
    Finish();
  }

  EngineStats stats;
  int hits = 0;
  int held = 0;  // global pages, when all had stopped reading

 private:
  // Everybody reads, nobody comes: all end, with what they should have.
  void Finish() {
    for (const RequestId id : paused_) scheduler_->Resume(id);
    for (int i = 0; !scheduler_->idle() && !testing::Test::HasFatalFailure(); ++i) {
      Plan();
      Complete();
      ASSERT_LT(i, 20000) << "no end in sight";
    }
    Take(scheduler_->TakeEvents());
    CheckStats();
    stats = scheduler_->stats();
    EXPECT_EQ(stats.pages_used[0] + stats.pages_used[1], 0);
    for (const auto& [id, client] : clients_) {
      EXPECT_NE(client.finish, FinishReason::kNone) << id.value << " never ended";
      if (client.cancelled) continue;
      EXPECT_EQ(std::ssize(client.tokens), client.end_len) << id.value;
      EXPECT_EQ(client.scored_to, client.scores ? client.prompt_len - 1 : 0);
    }
    hits = device_->hits;
  }

  int32_t Pick(int32_t below) { return static_cast<int32_t>(random_() % below); }

  // A new prompt, or one that goes on from what another was answered.
  void Submit() {
    Client client;
    if (next_id_ > 1 && Pick(3) > 0) {
      const auto other = clients_.find(RequestId{1 + random_() % (next_id_ - 1)});
      if (other != clients_.end()) {
        client.tokens = other->second.tokens;
        client.tokens.resize(1 + Pick(static_cast<int32_t>(client.tokens.size())));
      }
    }
    const int32_t more = Pick(3) == 0 ? Pick(100) : Pick(20);
    for (int32_t i = 0; i < more || client.tokens.empty(); ++i) client.tokens.push_back(Pick(2));
    if (client.tokens.size() > 150) client.tokens.resize(150);
    client.prompt_len = static_cast<int32_t>(client.tokens.size());
    client.scores = Pick(6) == 0;
    client.end_len = client.prompt_len + (Pick(10) == 0 ? 0 : 1 + Pick(40));
    Submit(client);
  }

  // A prompt like no other, and as many tokens as fit.
  void SubmitForWholePool() {
    Client client;
    client.tokens.assign(1 + Pick(40), 7);
    client.prompt_len = static_cast<int32_t>(client.tokens.size());
    client.end_len = config_.max_context;
    if (config_.pages[1] > 0) {
      client.end_len = std::min(client.end_len, config_.pages[1] * kPageTokens + 1);
    }
    Submit(client);
  }

  void Submit(const Client& client) {
    EngineRequest request;
    NewSequence& sequence = request.sequence;
    sequence.id = RequestId{next_id_++};
    sequence.tokens = client.tokens;
    sequence.prompt_len = client.prompt_len;
    sequence.sampling.max_tokens = client.end_len - client.prompt_len;
    if (client.scores) sequence.sampling.prompt_logprobs = 0;
    request.cache_key = Pick(5) == 0 ? "b" : "a";
    request.priority = Pick(3) == 0 ? Priority::kBatch : Priority::kInteractive;
    if (!scheduler_->Submit(request, 0).ok()) return;
    keys_[sequence.id] = request.cache_key;
    clients_[sequence.id] = client;
  }

  void Cancel() {
    const auto it = clients_.find(RequestId{1 + random_() % (next_id_ - 1)});
    if (it == clients_.end()) return;
    it->second.cancelled = true;
    scheduler_->Cancel(it->first);
  }

  void PauseOrResume() {
    const RequestId id{1 + random_() % (next_id_ - 1)};
    if (paused_.erase(id) > 0) {
      scheduler_->Resume(id);
    } else {
      paused_.insert(id);
      scheduler_->Pause(id);
    }
  }

  void PauseAll() {
    for (const auto& [id, client] : clients_) {
      if (client.finish == FinishReason::kNone && paused_.insert(id).second) scheduler_->Pause(id);
    }
  }

  void Plan() {
    const std::optional<StepPlan> plan = scheduler_->Plan(0);
    if (plan) device_->Submit(*plan, keys_);
    ASSERT_TRUE(plan || device_->in_flight() > 0 || !scheduler_->has_work());
  }

  void Complete() {
    if (device_->in_flight() > 0) Take(scheduler_->Complete(device_->Complete(), 0));
  }

  void Take(const std::vector<EngineEvent>& events) {
    for (const EngineEvent& event : events) {
      Client& client = clients_.at(event.id);
      ASSERT_NE(event.finish, FinishReason::kError) << event.error;
      ASSERT_EQ(event.queue_seconds >= 0, event.cached_tokens >= 0);
      ASSERT_LT(event.cached_tokens, client.prompt_len);
      for (const ScoredToken& scored : event.prompt_scored) {
        ASSERT_EQ(scored.id, ++client.scored_to);
      }
      for (const ScoredToken& token : event.tokens) {
        ASSERT_EQ(token.id, Next(client.tokens));
        client.tokens.push_back(token.id);
      }
      client.finish = event.finish;
    }
  }

  void CheckStats() {
    const EngineStats s = scheduler_->stats();
    for (int f = 0; f < kKvFamilies; ++f) {
      ASSERT_LE(s.pages_used[f] + s.pages_cached[f], s.pages_total[f]);
      ASSERT_GE(std::min(s.pages_used[f], s.pages_cached[f]), 0);
    }
    ASSERT_LE(s.prefix_hit_tokens, s.prefix_lookup_tokens);
  }

  std::mt19937 random_;
  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Device> device_;
  std::map<RequestId, std::string> keys_;
  std::map<RequestId, Client> clients_;
  std::set<RequestId> paused_;
  uint64_t next_id_ = 1;
};

TEST(PrefixSchedule, EveryRequestReadsWhatItWouldHaveComputedAlone) {
  constexpr uint32_t kFirstSeed = 1, kTraces = 150;
  int hits = 0;
  uint64_t preemptions = 0, evicted = 0;
  for (uint32_t seed = kFirstSeed; seed < kFirstSeed + kTraces; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Trace trace(seed);
    trace.Run();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    hits += trace.hits;
    preemptions += trace.stats.preemptions;
    evicted += trace.stats.prefix_evicted_pages;
  }
  EXPECT_GT(hits, 400);  // the traces reach the interesting part
  EXPECT_GT(preemptions, 40u);
  EXPECT_GT(evicted, 400u);
}

TEST(PrefixSchedule, WhatPausedRequestsShareKeepsNobodyWaiting) {
  int held = 0;
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Trace trace(seed);
    trace.RunAfterAPause();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    held += trace.held;
  }
  EXPECT_GT(held, 1000);
}

}  // namespace
}  // namespace lapidary
