#include "engine/plan_codec.h"

#include <gtest/gtest.h>

#include <random>

namespace lapidary {
namespace {

StepPlan FullPlan() {
  StepPlan plan;
  plan.epoch = 7;
  plan.step = uint64_t{1} << 40;
  NewSequence sequence;
  sequence.id = RequestId{11};
  sequence.choice = 3;
  sequence.tokens = {2, 5, 262143};
  sequence.prompt_len = 2;
  sequence.cached_len = 1;
  sequence.needs_host_mask = true;
  SamplingParams& p = sequence.sampling;
  p.temperature = 0.5f;
  p.top_k = 64;
  p.top_p = 0.9f;
  p.min_p = 0.05f;
  p.repetition_penalty = 1.1f;
  p.presence_penalty = -0.25f;
  p.frequency_penalty = 0.75f;
  p.logit_bias = {{4, -100.0f}, {9, 2.5f}};
  p.suppressed = {100, 101};
  p.seed = 0xfedcba9876543210u;
  p.stop_ids = {1, 106};
  p.ignore_eos = true;
  p.min_tokens = 4;
  p.max_tokens = 99;
  p.logprobs = 5;
  p.prompt_logprobs = 0;
  plan.added.push_back(sequence);
  PlanRow row;
  row.seq = RequestId{11};
  row.start = 16;
  row.len = 17;
  row.source = InputSource::kSampled;
  row.source_step = 8;
  row.source_row = 2;
  row.logits = LogitsMask::kAll;
  row.samples = true;
  row.needs_host_mask = true;
  row.pages_added[0] = {PageId{4}, PageId{0}};
  row.pages_added[1] = {PageId{9}};
  plan.rows.push_back(row);
  plan.rows.push_back(PlanRow{});
  plan.finished = {RequestId{1}, RequestId{2}};
  plan.shutdown = true;
  return plan;
}

TEST(PlanCodec, EveryFieldComesBack) {
  const StepPlan plan = FullPlan();
  const absl::StatusOr<StepPlan> got = DecodePlan(EncodePlan(plan));
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->epoch, plan.epoch);
  EXPECT_EQ(got->step, plan.step);
  ASSERT_EQ(got->added.size(), 1u);
  const NewSequence& sequence = got->added[0];
  const NewSequence& sent = plan.added[0];
  EXPECT_EQ(sequence.id, sent.id);
  EXPECT_EQ(sequence.choice, sent.choice);
  EXPECT_EQ(sequence.tokens, sent.tokens);
  EXPECT_EQ(sequence.prompt_len, sent.prompt_len);
  EXPECT_EQ(sequence.cached_len, sent.cached_len);
  EXPECT_EQ(sequence.needs_host_mask, sent.needs_host_mask);
  const SamplingParams& p = sequence.sampling;
  const SamplingParams& q = sent.sampling;
  EXPECT_EQ(p.temperature, q.temperature);
  EXPECT_EQ(p.top_k, q.top_k);
  EXPECT_EQ(p.top_p, q.top_p);
  EXPECT_EQ(p.min_p, q.min_p);
  EXPECT_EQ(p.repetition_penalty, q.repetition_penalty);
  EXPECT_EQ(p.presence_penalty, q.presence_penalty);
  EXPECT_EQ(p.frequency_penalty, q.frequency_penalty);
  EXPECT_EQ(p.logit_bias, q.logit_bias);
  EXPECT_EQ(p.suppressed, q.suppressed);
  EXPECT_EQ(p.seed, q.seed);
  EXPECT_EQ(p.stop_ids, q.stop_ids);
  EXPECT_EQ(p.ignore_eos, q.ignore_eos);
  EXPECT_EQ(p.min_tokens, q.min_tokens);
  EXPECT_EQ(p.max_tokens, q.max_tokens);
  EXPECT_EQ(p.logprobs, q.logprobs);
  EXPECT_EQ(p.prompt_logprobs, q.prompt_logprobs);
  ASSERT_EQ(got->rows.size(), 2u);
  const PlanRow& row = got->rows[0];
  EXPECT_EQ(row.seq, RequestId{11});
  EXPECT_EQ(row.start, 16);
  EXPECT_EQ(row.len, 17);
  EXPECT_EQ(row.source, InputSource::kSampled);
  EXPECT_EQ(row.source_step, 8u);
  EXPECT_EQ(row.source_row, 2);
  EXPECT_EQ(row.logits, LogitsMask::kAll);
  EXPECT_TRUE(row.samples);
  EXPECT_TRUE(row.needs_host_mask);
  EXPECT_EQ(row.pages_added, plan.rows[0].pages_added);
  EXPECT_FALSE(got->rows[1].samples);
  EXPECT_EQ(got->finished, plan.finished);
  EXPECT_TRUE(got->shutdown);
  // And nothing that the encoder writes is lost, a field that this test forgot included.
  EXPECT_EQ(EncodePlan(*got), EncodePlan(plan));
}

TEST(PlanCodec, EveryTruncationIsRefused) {
  const std::string bytes = EncodePlan(FullPlan());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const absl::StatusOr<StepPlan> got = DecodePlan(std::string_view(bytes).substr(0, size));
    ASSERT_FALSE(got.ok()) << size << " of " << bytes.size() << " bytes";
    EXPECT_EQ(got.status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(DecodePlan(bytes + '\0').ok());
}

TEST(PlanCodec, AnotherVersionIsRefused) {
  std::string bytes = EncodePlan(FullPlan());
  ++bytes[0];
  const absl::Status status = DecodePlan(bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("version"), std::string::npos) << status;
}

TEST(PlanCodec, ALengthOfFourBillionIsRefusedAtOnce) {
  std::string bytes = EncodePlan(StepPlan{});
  bytes.replace(4 + 8 + 8, 4, "\xff\xff\xff\xff");  // how many sequences are added
  EXPECT_FALSE(DecodePlan(bytes).ok());
}

// Garbage is refused or is a plan; what is accepted encodes to the same bytes.
TEST(PlanCodec, FlippedBytesNeverCrash) {
  constexpr uint32_t kSeed = 20240611;
  std::mt19937 random(kSeed);
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  const std::string good = EncodePlan(FullPlan());
  int accepted = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string bytes = good;
    const int flips = 1 + static_cast<int>(random() % 8);
    for (int i = 0; i < flips; ++i) {
      // The format word stays: what lies behind it is the point.
      bytes[4 + random() % (bytes.size() - 4)] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 1));
    const absl::StatusOr<StepPlan> got = DecodePlan(bytes);
    if (!got.ok()) continue;
    ++accepted;
    ASSERT_EQ(EncodePlan(*got), bytes);
  }
  EXPECT_GT(accepted, 1000);  // the loop reached the deep fields too
}

}  // namespace
}  // namespace lapidary
