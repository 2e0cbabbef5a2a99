// Plans are made without a device: edits as the CPU's sampler makes them, messages that all ranks
// lay out alike.
#include "worker/cuda/sample_plan.h"

#include <cstring>
#include <set>

#include "tests/worker/sampler_harness.h"
#include "worker/sampler_edits.h"

namespace lapidary {
namespace {

uint32_t Bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

// What the edits make of logits, said plainly.
void Apply(const SampleRow& row, const std::vector<TokenEdit>& edits, std::vector<float>* logits) {
  const SamplingParams& p = *row.params;
  for (size_t e = 0; e < edits.size();) {
    float value = (*logits)[edits[e].column];
    size_t end = e;
    for (; end < edits.size() && edits[end].column == edits[e].column; ++end) {
      value += edits[end].bias;
    }
    if (p.has_penalties() && row.counts != nullptr) {
      const Penalties penalties{p.repetition_penalty, p.presence_penalty, p.frequency_penalty};
      value = ApplyPenalties(value, penalties, edits[e].in_prompt, edits[e].output_count);
    }
    (*logits)[edits[e].column] = edits[e].forbidden ? -kInfinity : value;
    e = end;
  }
}

TEST(TokenEdits, DoWhatTheCpusDo) {
  constexpr int kVocab = 400;
  std::mt19937 random(12);
  for (int round = 0; round < 300; ++round) {
    SamplingParams p;
    TokenCounts counts;
    const auto any = [&] { return static_cast<TokenId>(random() % (kVocab + 40)) - 20; };
    if (round % 2 == 0) {
      p.repetition_penalty = round % 4 == 0 ? 1.0f : 1.4f;
      p.presence_penalty = 0.3f;
      p.frequency_penalty = -0.2f;
    }
    for (uint32_t n = random() % 30; n > 0; --n) {
      p.logit_bias.emplace_back(any(), 0.1f * static_cast<float>(random() % 9));
    }
    for (size_t n = 0; n < 5 && n < p.logit_bias.size(); ++n) {
      p.logit_bias.emplace_back(p.logit_bias[n].first, 0.37f);  // more than one for a token
    }
    for (uint32_t n = random() % 10; n > 0; --n) p.suppressed.push_back(any());
    for (uint32_t n = random() % 5; n > 0; --n) p.stop_ids.push_back(any());
    p.min_tokens = 3;
    for (uint32_t n = random() % 50; n > 0; --n) ++counts.output[any()];
    for (uint32_t n = random() % 50; n > 0; --n) ++counts.prompt[any()];
    SampleRow row;
    row.samples = true;
    row.params = &p;
    row.counts = round % 5 == 0 ? nullptr : &counts;
    row.generated = static_cast<int32_t>(random() % 6);
    const Range shard{100, 300};
    std::vector<float> logits = RandomLogits(1, 200, 5, round)[0], expected = logits;
    ApplyEdits(MakeEdits(row, shard, expected.data()), expected.data());
    std::vector<TokenEdit> edits(2);  // after those of other rows
    AppendTokenEdits(row, shard, &edits);
    edits.erase(edits.begin(), edits.begin() + 2);
    for (size_t e = 1; e < edits.size(); ++e) ASSERT_LE(edits[e - 1].column, edits[e].column);
    Apply(row, edits, &logits);
    for (int c = 0; c < 200; ++c) ASSERT_EQ(Bits(logits[c]), Bits(expected[c])) << round;
  }
}

struct Mixed {
  std::vector<SamplingParams> params;
  TokenCounts counts;
  std::vector<SampleRow> rows;
};
Mixed MixedRows() {
  Mixed mixed;
  mixed.params.resize(6);
  mixed.params[0].temperature = 0;
  mixed.params[1].top_k = 64;
  mixed.params[2].top_p = 0.9f;
  mixed.params[3].top_k = 500;
  mixed.params[3].frequency_penalty = 1;
  mixed.params[4].suppressed = {1};  // in the first shard alone
  mixed.params[5].top_k = 256;
  mixed.params[5].logit_bias = {{999, 1.0f}};
  mixed.counts.output = {{5, 1}, {995, 2}};
  for (int i = 0; i < 36; ++i) {
    SampleRow row;
    row.logits_row = i;
    row.samples = i % 7 != 0;
    row.params = &mixed.params[i % 6];
    row.counts = &mixed.counts;
    row.top_logprobs = i % 4 == 0 ? 30 : 0;
    row.wants_logprob = i % 5 == 0;
    row.scored_token = i % 7 == 0 ? 3 : -1;
    mixed.rows.push_back(row);
  }
  return mixed;
}

TEST(SamplePlan, LaysOutMessagesAlikeOnAllRanks) {
  const Mixed mixed = MixedRows();
  SamplePlan first, second;
  MakeSamplePlan(mixed.rows, 1000, {0, 500}, 1 << 20, &first);
  MakeSamplePlan(mixed.rows, 1000, {500, 1000}, 1 << 20, &second);
  ASSERT_EQ(first.tasks.size(), mixed.rows.size());
  ASSERT_EQ(first.jobs.size(), second.jobs.size());
  EXPECT_EQ(first.entries, second.entries);
  EXPECT_EQ(first.threshold_rows, second.threshold_rows);
  EXPECT_NE(first.edited, second.edited);
  for (size_t t = 0; t < first.tasks.size(); ++t) {
    EXPECT_EQ(first.tasks[t].listed_at, second.tasks[t].listed_at);
    EXPECT_EQ(first.tasks[t].candidates_at, second.tasks[t].candidates_at);
  }
  // No two jobs write the same entries, and together they write all.
  std::set<int> written;
  for (const ShardJob& job : first.jobs) {
    for (int i = 0; i < job.count; ++i) EXPECT_TRUE(written.insert(job.message_at + i).second);
  }
  EXPECT_EQ(std::ssize(written), first.entries);
  EXPECT_TRUE(first.by_count);
  EXPECT_TRUE(first.by_mass);
}

TEST(SamplePlan, GroupsJobsByTheirLists) {
  const Mixed mixed = MixedRows();
  SamplePlan plan;
  for (const int64_t room : {int64_t{1}, int64_t{300}, int64_t{100000}}) {
    MakeSamplePlan(mixed.rows, 9000, {0, 9000}, room, &plan);  // three tiles
    int next = 0;
    for (const auto* groups : {&plan.groups, &plan.edited_groups}) {
      for (const JobGroup& group : *groups) {
        EXPECT_EQ(group.first, next);
        EXPECT_GT(group.last, group.first);
        next = group.last;
        int64_t used = 0;
        int most = 0;
        for (int j = group.first; j < group.last; ++j) {
          EXPECT_EQ(plan.jobs[j].list_at, used);
          EXPECT_EQ(plan.jobs[j].edited, groups == &plan.edited_groups);
          used += 3 * plan.jobs[j].count;
          most = std::max(most, plan.jobs[j].count);
        }
        EXPECT_EQ(group.most, most);
        EXPECT_TRUE(used <= room || group.last - group.first == 1) << room;
        EXPECT_LE(used, plan.lists);
      }
    }
    EXPECT_EQ(next, std::ssize(plan.jobs));
  }
}

TEST(SamplePlan, OneListServesBothEndsOfUneditedRows) {
  SamplingParams params;
  params.top_k = 10;
  std::vector<SampleRow> rows = Rows(1, params);
  rows[0].top_logprobs = 3;
  SamplePlan plan;
  MakeSamplePlan(rows, 1000, {0, 1000}, 1 << 20, &plan);
  ASSERT_EQ(plan.jobs.size(), 1u);
  EXPECT_EQ(plan.jobs[0].count, 10);
  EXPECT_TRUE(plan.jobs[0].wants_norm);
  EXPECT_EQ(plan.entries, 10);
  params.logit_bias = {{5, 1.0f}};
  MakeSamplePlan(rows, 1000, {0, 1000}, 1 << 20, &plan);
  ASSERT_EQ(plan.jobs.size(), 2u);
  EXPECT_EQ(plan.entries, 13);
  EXPECT_FALSE(plan.jobs[1].wants_norm);
}

}  // namespace
}  // namespace lapidary
