#include "engine/look_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>

#include "engine/scheduler.h"

namespace lapidary {
namespace {

struct Need {
  int32_t len;
  int32_t end_len;
};

// Token by token: at time t a request holds pages for len + t positions, until it has come to its
// end, and those for `lag` steps more; then none.
std::array<int64_t, kKvFamilies> Simulate(const KvManager& kv, int32_t lag,
                                          const std::vector<Need>& needs) {
  std::array<int64_t, kKvFamilies> most = {0, 0};
  int32_t last = 0;
  for (const Need& need : needs) last = std::max(last, need.end_len - need.len);
  for (int32_t t = 0; t <= last + lag; ++t) {
    std::array<int64_t, kKvFamilies> now = {0, 0};
    for (const Need& need : needs) {
      if (need.len + t > need.end_len + lag) continue;
      const auto pages = kv.PagesAtLength(std::min(need.len + t, need.end_len));
      for (int f = 0; f < kKvFamilies; ++f) now[f] += pages[f];
    }
    for (int f = 0; f < kKvFamilies; ++f) most[f] = std::max(most[f], now[f]);
  }
  return most;
}

TEST(LookAhead, AgreesWithASimulationTokenByToken) {
  for (uint32_t seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto pick = [&](int below) { return static_cast<int32_t>(random() % below); };
    const int32_t window = pick(3) == 0 ? 0 : 1 + pick(100);
    const bool global = window == 0 || pick(4) > 0;
    const KvManager kv({window > 0 ? 50 : 0, global ? 50 : 0}, window);
    const int32_t lag = pick(2);
    LookAhead ahead(kv, lag);
    std::vector<Need> needs;
    int64_t sliding = 0;
    for (int i = pick(12); i >= 0; --i) {
      const int32_t len = 1 + pick(200);
      needs.push_back({len, len + (pick(4) == 0 ? 0 : pick(200))});
      ahead.Add(len, needs.back().end_len, 0);
      sliding += kv.PagesAtLength(needs.back().end_len)[0];
      if (pick(3) == 0) ahead.Peak();  // asked in between, or not
    }
    const std::array<int64_t, kKvFamilies> truth = Simulate(kv, lag, needs);
    const std::array<int64_t, kKvFamilies> peak = ahead.Peak();
    EXPECT_EQ(peak[1], truth[1]);
    // Everybody at the window at once: never less than the truth.
    EXPECT_GE(peak[0], truth[0]);
    EXPECT_EQ(peak[0], sliding);
    EXPECT_EQ(ahead.Fits(), peak[0] <= kv.pool(KvFamily::kSliding).total() &&
                                peak[1] <= kv.pool(KvFamily::kGlobal).total());
    ahead.AddFixed(1, 3);
    EXPECT_EQ(ahead.Peak()[1], global ? truth[1] + 3 : 3);
  }
}

TEST(LookAhead, CountsSlidingPagesThatALongChunkHolds) {
  const KvManager kv({50, 0}, 16);
  LookAhead ahead(kv, 0);
  ahead.Add(100, 120, 7);
  EXPECT_EQ(ahead.Peak()[0], 7);
  ahead.Add(100, 120, 1);
  EXPECT_EQ(ahead.Peak()[0], 7 + 2);
}

TEST(LookAhead, CountsSharedPagesOnce) {
  const KvManager kv({0, 50}, 0);
  LookAhead ahead(kv, 0);
  ahead.AddFixed(1, 5);       // 80 tokens that both begin with
  ahead.Add(100, 120, 0, 5);  // 7, at its end 8 pages
  ahead.Add(90, 140, 0, 5);   // 6, at its end 9 pages, and 7 when the other one ends
  EXPECT_EQ(ahead.Peak()[1], 5 + 3 + 2);
}

TEST(OutputShare, LearnsFromWhatEnds) {
  OutputShare share(1);
  EXPECT_EQ(share.share(), 1);
  EXPECT_EQ(share.ExpectedKvLen(100, 201), 200);
  for (int i = 0; i < 9; ++i) share.Observe(10, 100);
  EXPECT_NEAR(share.share(), 0.1 * 1 + 0.9 * 0.1, 1e-12);  // the belief counts as one
  for (int i = 0; i < 10000; ++i) share.Observe(10, 100);
  EXPECT_NEAR(share.share(), 0.1, 1e-3);
  EXPECT_EQ(share.ExpectedKvLen(1000, 2000), 1000 + 101);
  // Half use all, half nothing: no less than all is safe. (Mean and deviation of an alternating
  // sequence, followed with a weight of 1/64.)
  for (int i = 0; i < 10000; ++i) share.Observe(i % 2 * 100, 100);
  EXPECT_GT(share.share(), 0.98);
  share.Observe(1, 0);  // nothing was allowed: nothing is learnt
  EXPECT_LE(share.share(), 1);
}

TEST(OutputShare, ReservesAtLeastAPageAndAtMostAll) {
  const OutputShare none(0);
  EXPECT_EQ(none.ExpectedKvLen(100, 2000), 116);
  EXPECT_EQ(none.ExpectedKvLen(100, 110), 109);  // the last token is never computed on
  EXPECT_EQ(none.ExpectedKvLen(100, 101), 100);
  EXPECT_EQ(none.ExpectedKvLen(100, 100), 100);
  EXPECT_EQ(OutputShare(1).ExpectedKvLen(100, 2000), 1999);
  EXPECT_EQ(OutputShare(1).ExpectedKvLen(2147483000, 2147483647), 2147483646);
}

// With true ends and prompts computed in one step the simulation is the future: nobody who is
// admitted is ever preempted. With ends that are only hoped for somebody is.
TEST(LookAhead, KnownEndsNeedNoPreemption) {
  uint64_t preemptions_hoping = 0;
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    for (const double share : {1.0, 0.0}) {
      std::mt19937 random(seed);
      const auto pick = [&](int below) { return static_cast<int32_t>(random() % below); };
      SchedulerConfig config;
      config.window = pick(2) == 0 ? 0 : 20;
      config.pages = {config.window > 0 ? 3 * (1 + pick(10)) : 0, 8 + pick(20)};
      config.max_context = 100;
      config.max_step_tokens = 4096;
      config.max_in_flight = 1 + pick(2);
      config.expected_output_share = share;
      const std::unique_ptr<Scheduler> scheduler = Scheduler::Create(config);
      std::deque<StepPlan> in_flight;
      uint64_t next_id = 1;
      for (int i = 0; i < 400 || !scheduler->idle(); ++i) {
        ASSERT_LT(i, 10000);
        if (i < 400 && pick(3) == 0) {
          EngineRequest request;
          request.sequence.id = RequestId{next_id++};
          request.sequence.prompt_len = 1 + pick(config.window > 0 ? 16 : 50);
          request.sequence.tokens.resize(request.sequence.prompt_len);
          request.sequence.sampling.max_tokens = 1 + pick(50);
          ASSERT_TRUE(scheduler->Submit(request, 0).ok());
        }
        std::optional<StepPlan> plan = scheduler->Plan(0);
        const bool none = !plan;
        if (plan) in_flight.push_back(*std::move(plan));
        if (in_flight.empty() ||
            (!none && static_cast<int>(in_flight.size()) < config.max_in_flight)) {
          continue;
        }
        StepResult result;
        result.step = in_flight.front().step;
        for (const PlanRow& row : in_flight.front().rows) {
          result.rows.push_back({row.seq, {}, {}});
          if (row.samples) result.rows.back().sampled.resize(1);
        }
        in_flight.pop_front();
        scheduler->Complete(result, 0);
      }
      if (share == 1) {
        ASSERT_EQ(scheduler->stats().preemptions, 0u) << "seed " << seed;
      } else {
        preemptions_hoping += scheduler->stats().preemptions;
      }
    }
  }
  EXPECT_GT(preemptions_hoping, 10u);  // until the truth is learnt, in each trace anew
}

}  // namespace
}  // namespace lapidary
