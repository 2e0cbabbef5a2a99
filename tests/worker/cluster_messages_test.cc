#include "worker/cluster_messages.h"

#include <cmath>

#include "gtest/gtest.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;

TEST(ClusterMessages, ASubmitSaysWhoseItIs) {
  wire::Submit submit;
  submit.set_id(7);
  submit.add_prompt(2);
  submit.add_generated_prefix(5);
  submit.set_batch(true);
  submit.set_tenant("blue");
  submit.set_cache_key("4:blue");
  submit.set_deadline_seconds(2.5);
  const EngineRequest request = FromMessage(submit);
  EXPECT_EQ(request.sequence.prompt_len, 1);
  EXPECT_EQ(request.sequence.tokens.size(), 2u);
  EXPECT_EQ(request.priority, Priority::kBatch);
  EXPECT_EQ(request.tenant, "blue");
  EXPECT_EQ(request.cache_key, "4:blue");
  EXPECT_EQ(request.deadline, 2.5);
}

TEST(ClusterMessages, WithoutADeadlineThereIsNone) {
  wire::Submit submit;
  EXPECT_EQ(FromMessage(submit).deadline, 0);
  EXPECT_EQ(FromMessage(submit).priority, Priority::kInteractive);
  for (const double odd : {-1.0, std::nan("")}) {
    submit.set_deadline_seconds(odd);
    EXPECT_EQ(FromMessage(submit).deadline, 0) << odd;
  }
}

TEST(ClusterMessages, AnEventTellsOfTheCacheAndOfTheQueue) {
  EngineEvent event;
  EXPECT_FALSE(ToMessage(1, {event}).events(0).has_cached_tokens());
  event.cached_tokens = 0;  // asked and not found: not the same as not asked
  EXPECT_TRUE(ToMessage(1, {event}).events(0).has_cached_tokens());
  event.cached_tokens = 32;
  event.finish = FinishReason::kError;
  event.error = absl::ResourceExhaustedError("full");
  event.retry_after_seconds = 1.5;
  const wire::RequestEvent m = ToMessage(1, {event}).events(0);
  EXPECT_EQ(m.cached_tokens(), 32u);
  EXPECT_EQ(m.retry_after_seconds(), 1.5);
}

TEST(ClusterMessages, ALoadHasEveryNumber) {
  EngineStats stats;
  stats.waiting = 1;
  stats.running = 2;
  stats.waiting_batch = 3;
  stats.running_batch = 4;
  stats.waiting_tokens = 5;
  stats.pages_used = {6, 7};
  stats.pages_cached = {8, 9};
  stats.preemptions = 10;
  stats.recomputed_tokens = 11;
  stats.prefix_lookup_tokens = 12;
  stats.prefix_hit_tokens = 13;
  stats.prefix_evicted_pages = 17;
  stats.paused = 18;
  stats.steps = 14;
  stats.decode_rows = 15;
  stats.prefill_tokens = 16;
  const wire::Load m = ToMessage(stats);
  EXPECT_EQ(m.waiting(), 1u);
  EXPECT_EQ(m.running(), 2u);
  EXPECT_EQ(m.waiting_batch(), 3u);
  EXPECT_EQ(m.running_batch(), 4u);
  EXPECT_EQ(m.waiting_tokens(), 5u);
  EXPECT_EQ(m.sliding_pages_used(), 6u);
  EXPECT_EQ(m.global_pages_used(), 7u);
  EXPECT_EQ(m.sliding_pages_cached(), 8u);
  EXPECT_EQ(m.global_pages_cached(), 9u);
  EXPECT_EQ(m.preemptions(), 10u);
  EXPECT_EQ(m.recomputed_tokens(), 11u);
  EXPECT_EQ(m.prefix_lookup_tokens(), 12u);
  EXPECT_EQ(m.prefix_hit_tokens(), 13u);
  EXPECT_EQ(m.prefix_evicted_pages(), 17u);
  EXPECT_EQ(m.paused(), 18u);
  EXPECT_EQ(m.steps(), 14u);
  EXPECT_EQ(m.decode_rows(), 15u);
  EXPECT_EQ(m.prefill_tokens(), 16u);
}

}  // namespace
}  // namespace lapidary
