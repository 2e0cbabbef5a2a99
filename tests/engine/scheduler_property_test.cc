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
  int resumed_later = 0;  // added anew after a pause

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
    const absl::Status status = scheduler_->Submit(request, 0);
    if (status.ok()) {
      clients_[sequence.id] = ShadowClient(request, config_.max_context);
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
      const ShadowClient& client = clients_.at(sequence.id);
      const std::vector<TokenId> generated(sequence.tokens.begin() + sequence.prompt_len,
                                           sequence.tokens.end());
      ASSERT_EQ(generated, client.tokens()) << "resumed with other tokens than were given";
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
    TakeEvents(scheduler_->Complete(ranks_->Complete(), 0));
  }

  void TakeEvents(const std::vector<EngineEvent>& events) {
    for (const EngineEvent& event : events) {
      clients_.at(event.id).Take(event);
      ASSERT_NE(event.finish, FinishReason::kError) << event.error;
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
    ASSERT_EQ(stats.waiting == 0, stats.waiting_tokens == 0);
  }

  std::mt19937 random_;
  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ShadowRanks> ranks_;
  std::map<RequestId, ShadowClient> clients_;
  std::set<RequestId> admitted_, cancelled_;
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
