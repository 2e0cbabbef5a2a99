// Rows without a short list of candidates, on one to four shards, against a sort of the whole row.
// All ranks write into one set of buffers, as if gathered.
#include <gtest/gtest.h>

#include <memory>

#include "kernels/sampling/sample_reference.h"
#include "kernels/sampling/sample_test_step.h"

namespace lapidary {
namespace {

constexpr int kVocab = 20000;

struct Row {
  std::vector<float> logits;
  SampleTask task;
};

std::vector<Row> RandomRows(int count, std::mt19937& random) {
  std::vector<Row> rows(count);
  for (int i = 0; i < count; ++i) {
    Row& row = rows[i];
    row.logits = RandomFloats(kVocab, 2, static_cast<uint32_t>(random()));
    const int kind = i % 8;
    for (int c = 0; c < kVocab; ++c) {
      float& v = row.logits[c];
      if (kind == 1) v = std::round(v);
      if (kind == 2) v = c % 2 == 0 ? 1.25f : -1.25f;
      if (kind == 3 && c % 11 != 0) v = c % 3 == 0 ? NAN : -kInf;
      if (kind == 4) v = std::round(v * 4) / 4 + (c % 2 == 0 ? 0.0f : -0.0f);
      if (kind == 5) v = 3.0f + 0x1p-22f * static_cast<float>(c * 7919 % 5000);
      if (kind == 6) v = c == 17 || c == 19000 ? kInf : v;
      if (kind == 7) v = NAN;
    }
    SampleTask& task = row.task;
    task.logits_row = i;
    task.scale = 1.44269504f / (0.3f + static_cast<float>(random() % 8));
    task.top_k = random() % 2 == 0 ? 0 : static_cast<int32_t>(257 + random() % 15000);
    constexpr double kTopP[] = {1, 1, 0.9, 0.5, 0.999, 0.0, 1e-7};
    task.top_p = kTopP[random() % 7];
    task.min_weight = random() % 3 == 0 ? int64_t{1} << (20 + random() % 25) : 1;
    task.bits = uint64_t{random()} << 32 | random();
    if (i % 13 == 5) task.bits = i % 2 == 0 ? 0 : ~uint64_t{0};
    task.threshold_row = i;
    task.wants_logprobs = i % 2 == 0;
  }
  return rows;
}

// A row of the search as LaunchDraw begins it.
GpuThresholdRow Begin(const Row& row, int task) {
  GpuThresholdRow begin;
  begin.task = task;
  for (int c = 0; c < kVocab; ++c) {
    if (!(row.logits[c] > -kInf)) continue;
    if (begin.best_id >= 0 && row.logits[c] <= row.logits[begin.best_id]) continue;
    begin.best_id = c;
  }
  if (begin.best_id >= 0) begin.max = begin.best_raw = row.logits[begin.best_id];
  return begin;
}

class TokenThresholdsTest : public testing::TestWithParam<std::vector<int>> {};

TEST_P(TokenThresholdsTest, FindTheReferencesTokens) {
  const std::vector<int>& ends = GetParam();  // of the shards
  const auto ranks = static_cast<int>(ends.size());
  std::mt19937 random(77);
  constexpr int kRows = 48;
  const std::vector<Row> rows = RandomRows(kRows, random);
  std::vector<GpuThresholdRow> begin;
  for (int i = 0; i < kRows; ++i) begin.push_back(Begin(rows[i], i));
  DeviceArray<GpuThresholdRow> device_rows(begin);
  DeviceArray<int64_t> histograms(int64_t{ranks} * kRows * kThresholdBuckets);
  DeviceArray<ShardKept> kept(int64_t{ranks} * kRows);
  DeviceArray<FoundToken> found(int64_t{ranks} * kRows);
  DeviceArray<int32_t> ids_out(kRows);

  std::vector<std::unique_ptr<TestStep>> shards;
  std::vector<std::unique_ptr<DeviceArray<ShardKept>>> tile_kept;
  std::vector<ThresholdStep> steps;
  for (int r = 0; r < ranks; ++r) {
    const int first = r == 0 ? 0 : ends[r - 1];
    std::vector<std::vector<float>> logits;
    for (const Row& row : rows) {
      logits.emplace_back(row.logits.begin() + first, row.logits.begin() + ends[r]);
    }
    shards.push_back(std::make_unique<TestStep>(logits, ends[r] - first + r, first, r, ranks));
    for (const Row& row : rows) shards[r]->tasks.push_back(row.task);
    for (int i = 0; i < kRows; i += 3) {
      shards[r]->tasks[i].id_out = ids_out.data() + i;
    }
    ThresholdStep t;
    t.step = shards[r]->Upload();
    t.rows = device_rows.data();
    t.count = kRows;
    t.histograms = histograms.data();
    t.kept = kept.data();
    t.found = found.data();
    tile_kept.push_back(std::make_unique<DeviceArray<ShardKept>>(kRows * t.step.tiles() + 1));
    t.tile_kept = tile_kept[r]->data();
    steps.push_back(t);
  }
  // Results as LaunchDraw leaves them: the best token, and the norm of rows that want it.
  std::vector<SampleResult> drawn(kRows + 1);
  for (int i = 0; i < kRows; ++i) drawn[i].id = std::max(begin[i].best_id, 0);
  DeviceArray<SampleResult> results(drawn);
  DeviceArray<RowNorm> norms(std::vector<RowNorm>(kRows, RowNorm{1.0f, 2.0f}));
  for (ThresholdStep& t : steps) {
    t.step.results = results.data();
    t.step.row_norms = norms.data();
  }

  TestStream stream;
  for (const bool by_mass : {false, true}) {
    for (int round = 0; round < kThresholdRounds; ++round) {
      for (const ThresholdStep& t : steps) {
        ASSERT_EQ(ClearHistograms(t, stream), cudaSuccess);
        ASSERT_EQ(LaunchThresholdHistogram(t, by_mass, round, 1 + round, stream), cudaSuccess);
      }
      ASSERT_EQ(LaunchThresholdNarrow(steps[0], by_mass, round, stream), cudaSuccess);
    }
  }
  for (const ThresholdStep& t : steps) {
    ASSERT_EQ(ClearKeptMass(t, stream), cudaSuccess);
    ASSERT_EQ(LaunchKeptMass(t, stream), cudaSuccess);
  }
  for (const ThresholdStep& t : steps) ASSERT_EQ(LaunchFindToken(t, stream), cudaSuccess);
  ASSERT_EQ(LaunchFinishThresholds(steps[0], stream), cudaSuccess);

  const std::vector<SampleResult> got = results.Get();
  const std::vector<int32_t> ids = ids_out.Get();
  for (int i = 0; i < kRows; ++i) {
    std::vector<ReferenceToken> tokens;
    for (int c = 0; c < kVocab; ++c) tokens.push_back({rows[i].logits[c], rows[i].logits[c], c});
    const ReferenceToken expected = DrawReference(rows[i].task, tokens, rows[i].task.top_k, false);
    EXPECT_EQ(got[i].id, std::max(expected.id, 0)) << "row " << i;
    // On one rank the only step has tasks with outputs.
    EXPECT_EQ(ids[i], i % 3 == 0 ? got[i].id : -1) << "row " << i;
    if (rows[i].task.wants_logprobs && expected.id >= 0 && expected.raw < kInf) {
      EXPECT_EQ(got[i].logprob, expected.raw - 3) << "row " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, TokenThresholdsTest,
                         testing::Values(std::vector<int>{kVocab}, std::vector<int>{8192, kVocab},
                                         std::vector<int>{1, 5001, kVocab},
                                         std::vector<int>{5000, 10000, 15000, kVocab}));

TEST(TokenThresholds, RefuseBadSizesAndDoNothingForNoRows) {
  TestStep test({{1.0f}}, 1);
  ThresholdStep t;
  t.step = test.Upload();
  TestStream stream;
  EXPECT_EQ(LaunchThresholdHistogram(t, false, 0, 1, stream), cudaSuccess);
  EXPECT_EQ(LaunchThresholdNarrow(t, false, 0, stream), cudaSuccess);
  EXPECT_EQ(LaunchKeptMass(t, stream), cudaSuccess);
  EXPECT_EQ(LaunchFindToken(t, stream), cudaSuccess);
  EXPECT_EQ(LaunchFinishThresholds(t, stream), cudaSuccess);
  EXPECT_EQ(LaunchThresholdHistogram(t, false, 3, 1, stream), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchThresholdHistogram(t, false, 0, 0, stream), cudaErrorInvalidValue);
  t.step.ranks = kMaxSampleRanks + 1;
  EXPECT_EQ(LaunchFindToken(t, stream), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
