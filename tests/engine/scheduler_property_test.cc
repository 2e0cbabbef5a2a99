// Random traces of everything at once (priorities, tenants, deadlines, pauses, cancellations, two
// steps in flight, small pools) against a shadow of the ranks, which knows only the plans it
// received. Whatever the trace: no page has two owners, nothing reads a freed page, budgets hold,
// each request ends once with the tokens it would get alone, a tenant's requests are admitted in
// order, batch work never costs interactive work its pages, nobody waits for ever, and the same
// calls give the same plans.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>

#include "engine/kv_manager.h"
#include "engine/plan_codec.h"
#include "engine/scheduler.h"
#include "tests/engine/shadow_ranks.h"

namespace lapidary {
namespace {

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
    config_.max_queued_tokens = Pick(3) == 0 ? 100 + Pick(500) : 0;
    config_.step_seconds_target = Pick(2) == 0 ? 0 : 0.01 + 0.001 * Pick(50);
    config_.expected_output_share = 0.25 * Pick(5);
    config_.tenant_weights = {{"b", 2}, {"c", 0.5}};
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
      most_steps += 4 * (client.most_tokens() + 1);
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
    for (const auto& [id, client] : clients_) {
      client.CheckEnd();
      if (client.finish() == FinishReason::kCancelled) {
        EXPECT_TRUE(cancelled_.contains(id));
      }
    }
    EXPECT_EQ(scheduler_->stats().paused, 0);
    preemptions = scheduler_->stats().preemptions;
  }

  uint64_t preemptions = 0;
  int resumed_later = 0;       // added anew after a pause
  int resumed_with_pages = 0;  // went on after one
  int late = 0;                // ended at their deadline
  int interactive_preempted = 0;
  std::string plans;  // as bytes, one after the other

 private:
  int32_t Pick(int32_t below) { return static_cast<int32_t>(random_() % below); }

  void Submit() {
    EngineRequest request;
    NewSequence& sequence = request.sequence;
    sequence.id = RequestId{next_id_++};
    sequence.prompt_len = 1 + Pick(Pick(3) == 0 ? 150 : 30);
    sequence.needs_host_mask = Pick(5) == 0;
    SamplingParams& sampling = sequence.sampling;
    sampling.max_tokens = Pick(8) == 0 ? 0 : 1 + Pick(60);
    const int32_t generated = sampling.max_tokens > 5 && Pick(4) == 0 ? Pick(5) : 0;
    if (Pick(2) == 0) sampling.stop_ids = {Pick(97)};
    if (Pick(3) == 0) sampling.prompt_logprobs = 0;
    for (int32_t i = 0; i < sequence.prompt_len + generated; ++i) {
      sequence.tokens.push_back(TokenAt(sequence.id, i));
    }
    request.priority = Pick(3) == 0 ? Priority::kBatch : Priority::kInteractive;
    request.tenant = std::string(1, static_cast<char>('a' + Pick(3)));
    if (Pick(6) == 0) request.deadline = now_ + 1 + Pick(100);
    const absl::Status status = scheduler_->Submit(request, now_);
    if (status.ok()) {
      clients_[sequence.id] = ShadowClient(request, config_.max_context);
      asked_[sequence.id] = {request.priority, request.tenant, request.deadline};
      EXPECT_EQ(scheduler_->Submit(request, now_).code(), absl::StatusCode::kAlreadyExists);
    } else {
      EXPECT_TRUE(status.code() == absl::StatusCode::kInvalidArgument ||
                  status.code() == absl::StatusCode::kResourceExhausted)
          << status;
    }
  }

  void Cancel() {
    if (next_id_ == 1) return;
    const RequestId id{1 + random_() % (next_id_ - 1)};
    cancelled_.insert(id);
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
    was_paused_.insert(id);
  }

  void Plan() {
    const bool in_flight = ranks_->in_flight() > 0;
    std::optional<StepPlan> plan = scheduler_->Plan(++now_);
    if (!plan) {
      ASSERT_TRUE(in_flight || !scheduler_->has_work())
          << "work is waiting and nothing was planned";
      return TakeEvents(scheduler_->TakeEvents());
    }
    plans += EncodePlan(*plan);
    ASSERT_EQ(plan->epoch, config_.epoch);
    ASSERT_FALSE(plan->rows.empty());
    ASSERT_LT(static_cast<int32_t>(ranks_->in_flight()), config_.max_in_flight);
    for (const NewSequence& sequence : plan->added) CheckAdded(sequence);
    std::set<RequestId> added;
    for (const NewSequence& sequence : plan->added) added.insert(sequence.id);
    bool batch_rows = false;
    for (const PlanRow& row : plan->rows) {
      ASSERT_FALSE(paused_.contains(row.seq)) << "a row for a paused request";
      batch_rows |= asked_.at(row.seq).priority == Priority::kBatch;
      if (ever_paused_.erase(row.seq) > 0 && admitted_.contains(row.seq)) {
        ++(added.contains(row.seq) ? resumed_later : resumed_with_pages);
      }
    }
    for (const RequestId id : plan->finished) {
      // Neither ended (known already, or told with the next result) nor paused: preempted.
      const Asked& asked = asked_.at(id);
      const bool ended = clients_.at(id).finish() != FinishReason::kNone ||
                         cancelled_.contains(id) || (asked.deadline > 0 && asked.deadline <= now_);
      if (ended || was_paused_.contains(id) || asked.priority == Priority::kBatch) continue;
      ++interactive_preempted;
      EXPECT_TRUE(!batch_rows || added.contains(id)) << "preempted while batch work runs";
    }
    ranks_->Apply(*plan);
  }

  void CheckAdded(const NewSequence& sequence) {
    const ShadowClient& client = clients_.at(sequence.id);
    const std::vector<TokenId> generated(sequence.tokens.begin() + sequence.prompt_len,
                                         sequence.tokens.end());
    ASSERT_EQ(generated, client.tokens()) << "resumed with other tokens than were given";
    // A tenant's requests come in order, but for those that were paused.
    if (!admitted_.insert(sequence.id).second || was_paused_.contains(sequence.id)) return;
    const Asked& asked = asked_.at(sequence.id);
    RequestId& last = last_admitted_[{asked.priority, asked.tenant}];
    ASSERT_GT(sequence.id, last);
    last = sequence.id;
  }

  void Complete() {
    if (ranks_->in_flight() == 0) return;
    StepResult result = ranks_->Complete();
    result.forward_seconds = 0.001 * Pick(40);
    TakeEvents(scheduler_->Complete(result, now_));
  }

  void TakeEvents(const std::vector<EngineEvent>& events) {
    for (const EngineEvent& event : events) {
      clients_.at(event.id).Take(event);
      if (event.finish != FinishReason::kError) continue;
      ++late;
      ASSERT_GT(asked_.at(event.id).deadline, 0);
      ASSERT_LE(asked_.at(event.id).deadline, now_);
    }
  }

  void CheckStats() {
    const EngineStats stats = scheduler_->stats();
    for (int f = 0; f < kKvFamilies; ++f) {
      ASSERT_EQ(stats.pages_total[f], config_.pages[f]);
      ASSERT_GE(stats.pages_used[f], 0);
      ASSERT_LE(stats.pages_used[f], config_.pages[f]);
    }
    ASSERT_LE(stats.running, config_.max_running);
    ASSERT_LE(stats.running_batch, stats.running);
    ASSERT_LE(stats.waiting_batch, stats.waiting);
    ASSERT_EQ(stats.waiting == 0, stats.waiting_tokens == 0);
    ASSERT_GE(scheduler_->RetryAfterSeconds(), 1);
  }

  std::mt19937 random_;
  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ShadowRanks> ranks_;
  std::map<RequestId, ShadowClient> clients_;
  struct Asked {
    Priority priority;
    std::string tenant;
    double deadline;
  };
  std::map<RequestId, Asked> asked_;
  std::set<RequestId> admitted_, cancelled_;
  // Ended ones among them. Ever: and has had no row since.
  std::set<RequestId> paused_, ever_paused_, was_paused_;
  std::map<std::pair<Priority, std::string>, RequestId> last_admitted_;
  uint64_t next_id_ = 1;
  double now_ = 1;
};

TEST(SchedulerProperty, HoldsOverRandomTraces) {
  constexpr uint32_t kFirstSeed = 1, kTraces = 1500;
  uint64_t preemptions = 0;
  int resumed_later = 0, resumed_with_pages = 0, late = 0, interactive_preempted = 0;
  for (uint32_t seed = kFirstSeed; seed < kFirstSeed + kTraces; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Trace trace(seed);
    trace.Run();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    preemptions += trace.preemptions;
    resumed_later += trace.resumed_later;
    resumed_with_pages += trace.resumed_with_pages;
    late += trace.late;
    interactive_preempted += trace.interactive_preempted;
    if (seed % 50 != 0) continue;
    Trace again(seed);
    again.Run();
    ASSERT_EQ(trace.plans, again.plans) << "the same calls gave other plans";
  }
  // The traces reach the interesting parts.
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(resumed_later, 100);
  EXPECT_GT(resumed_with_pages, 100);
  EXPECT_GT(late, 100);
  EXPECT_GT(interactive_preempted, 20);
}

// The queue is never empty, interactive and batch work keep coming, pages are short: every
// interactive request still ends within a bounded number of steps, whoever else is served before.
TEST(SchedulerProperty, NobodyWaitsForEver) {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto pick = [&](int below) { return static_cast<int32_t>(random() % below); };
    SchedulerConfig config;
    config.window = pick(2) * 20;
    config.pages = {config.window > 0 ? 4 + pick(8) : 0, 4 + pick(12)};
    config.max_context = 60;
    config.max_running = 1 + pick(6);
    config.max_step_tokens = 8 + pick(40);
    config.max_in_flight = 1 + pick(2);
    config.expected_output_share = 0.5 * pick(3);
    config.tenant_weights = {{"a", 5}};
    const std::unique_ptr<Scheduler> scheduler = Scheduler::Create(config);
    ShadowRanks ranks(config);
    struct Live {
      int since;
      bool batch;
    };
    std::map<RequestId, Live> live;
    constexpr int kInteractive = 12, kBatch = 6;  // live at any time, of each
    int interactive = 0, batch = 0, longest = 0;
    uint64_t next_id = 1;
    const auto submit = [&](bool is_batch, int step) {
      EngineRequest request;
      NewSequence& sequence = request.sequence;
      sequence.id = RequestId{next_id++};
      sequence.prompt_len = 1 + pick(30);
      for (int32_t i = 0; i < sequence.prompt_len; ++i) {
        sequence.tokens.push_back(TokenAt(sequence.id, i));
      }
      sequence.sampling.max_tokens = 1 + pick(25);
      sequence.sampling.stop_ids = {pick(97), pick(97), pick(97)};
      request.priority = is_batch ? Priority::kBatch : Priority::kInteractive;
      // One tenant floods the queue, with a higher weight; one comes anew each time.
      request.tenant = pick(4) > 0 ? "a" : pick(2) == 0 ? "b" : std::to_string(next_id);
      ASSERT_TRUE(scheduler->Submit(request, 0).ok());
      live[sequence.id] = {step, is_batch};
      ++(is_batch ? batch : interactive);
    };
    // Each live request is 55 steps of one token at most. Before one of them come those that are
    // here and, by its tenant's share (1 of 7: a has 5, b and the newcomer 1 each), at most seven
    // times as many; preempted or not, the first in rank moves in every second step.
    constexpr int kMost = 2 * 7 * kInteractive * 55;
    for (int step = 0; step < 3000; ++step) {
      while (interactive < kInteractive) submit(false, step);
      while (batch < kBatch) submit(true, step);
      std::optional<StepPlan> plan = scheduler->Plan(0);
      if (plan) ranks.Apply(*plan);
      ASSERT_GT(ranks.in_flight(), 0u);
      if (plan && pick(2) == 0 && config.max_in_flight > 1) continue;
      for (const EngineEvent& event : scheduler->Complete(ranks.Complete(), 0)) {
        ASSERT_NE(event.finish, FinishReason::kError) << event.error;
        if (event.finish == FinishReason::kNone) continue;
        const Live& ended = live.at(event.id);
        if (!ended.batch) longest = std::max(longest, step - ended.since);
        --(ended.batch ? batch : interactive);
        live.erase(event.id);
      }
      if (HasFatalFailure()) return;
      for (const auto& entry : live) {
        if (entry.second.batch) continue;
        ASSERT_LT(step - entry.second.since, kMost) << "request " << entry.first.value;
      }
    }
    EXPECT_GT(longest, 0);
    EXPECT_GT(next_id, 100u);
  }
}

}  // namespace
}  // namespace lapidary
