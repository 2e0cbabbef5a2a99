// A shard's best tokens and norm against a sort and double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/sampling/sample_test_step.h"

namespace lapidary {
namespace {

// Ids of the best k, in order: descending value, then ascending column; -inf and NaN are none.
std::vector<int> BestColumns(const std::vector<float>& row, int k) {
  std::vector<int> order;
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] > -kInf) order.push_back(static_cast<int>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
  if (std::ssize(order) > k) order.resize(k);
  return order;
}

struct Kind {
  const char* name;
  float (*value)(int column, std::mt19937& random);
};

float Normal(int, std::mt19937& random) { return std::normal_distribution<float>(0, 3)(random); }

// In the first tile eight threads of each warp have one large number, but those of one warp have
// smaller ones: a bound that leaves that warp's offer out is reached by 56, not by 64.
float ShortWarp(int column, int short_warp) {
  const int thread = column / 4;
  if (column % 4 != 0 || thread >= 256 || thread % 32 >= 8) return static_cast<float>(-column - 1);
  return static_cast<float>(thread + (thread / 32 == short_warp ? 1000 : 2000));
}

const Kind kKinds[] = {
    {"normal", Normal},
    {"few_values", [](int, std::mt19937& random) { return static_cast<float>(random() % 3); }},
    {"one_value", [](int, std::mt19937&) { return -7.5f; }},
    {"ascending", [](int column, std::mt19937&) { return static_cast<float>(column); }},
    {"descending", [](int column, std::mt19937&) { return static_cast<float>(-column); }},
    // Large ones side by side, where the threads' own largest say little.
    {"clustered",
     [](int column, std::mt19937& random) {
       return Normal(0, random) + (column % 1024 < 300 ? 50.0f : 0.0f);
     }},
    {"close", [](int column, std::mt19937&) { return 1.0f + 0x1p-23f * (column * 7919 % 100000); }},
    {"mostly_forbidden",
     [](int column, std::mt19937& random) {
       return column % 997 == 5 ? Normal(0, random) : column % 3 == 0 ? NAN : -kInf;
     }},
    {"lowest_numbers",
     [](int column, std::mt19937&) {
       return column % 5 == 0 ? -kInf : std::numeric_limits<float>::lowest();
     }},
    {"infinities",
     [](int column, std::mt19937& random) {
       return column % 100 == 7 ? kInf : column % 2 == 0 ? 0.0f : -0.0f + Normal(0, random);
     }},
    {"nothing", [](int column, std::mt19937&) { return column % 2 == 0 ? NAN : -kInf; }},
    {"short_first_warp", [](int column, std::mt19937&) { return ShortWarp(column, 0); }},
    {"short_last_warp", [](int column, std::mt19937&) { return ShortWarp(column, 7); }},
};

class ShardListsTest : public testing::TestWithParam<Kind> {};

TEST_P(ShardListsTest, AreTheBestInOrder) {
  struct Shape {
    int64_t columns, stride;
    std::vector<int> counts;
  };
  for (const Shape& shape : {Shape{1, 1, {1, 3}}, Shape{100, 104, {1, 2, 64, 256}},
                             Shape{4096, 4096, {1, 20, 200, 256}}, Shape{9013, 9016, {1, 64, 255}},
                             Shape{20000, 20001, {256, 1, 5}}, Shape{70000, 70000, {256, 128}}}) {
    std::mt19937 random(11);
    const int rows = static_cast<int>(shape.counts.size());
    std::vector<std::vector<float>> logits(rows, std::vector<float>(shape.columns));
    for (auto& row : logits) {
      for (int c = 0; c < shape.columns; ++c) row[c] = GetParam().value(c, random);
    }
    constexpr int kFirstId = 1000;
    TestStep test(logits, shape.stride, kFirstId);
    for (int r = 0; r < rows; ++r) {
      SampleTask task;
      task.logits_row = r;
      test.tasks.push_back(task);
      ShardJob job;
      job.task = r;
      job.count = shape.counts[r];
      job.message_at = static_cast<int32_t>(test.entries);
      test.entries += job.count;
      test.jobs.push_back(job);
    }
    const SampleStep& step = test.Upload();
    TestStream stream;
    ASSERT_EQ(LaunchShardTiles(step, 0, rows, stream), cudaSuccess);
    const int most = *std::max_element(shape.counts.begin(), shape.counts.end());
    ASSERT_EQ(LaunchShardLists(step, 0, rows, most, stream), cudaSuccess);
    const std::vector<ShardEntry> entries = test.GetEntries();
    for (int r = 0; r < rows; ++r) {
      const std::vector<int> expected = BestColumns(logits[r], shape.counts[r]);
      for (int i = 0; i < shape.counts[r]; ++i) {
        SCOPED_TRACE(testing::Message()
                     << shape.columns << " columns, best " << shape.counts[r] << ", place " << i);
        const ShardEntry& entry = entries[test.jobs[r].message_at + i];
        if (i >= std::ssize(expected)) {
          ASSERT_EQ(entry.key, 0u);
          ASSERT_EQ(entry.id, -1);
          continue;
        }
        ASSERT_EQ(entry.id, kFirstId + expected[i]);
        ASSERT_EQ(ValueOfKey(entry.key), logits[r][expected[i]]);
        ASSERT_EQ(entry.raw, logits[r][expected[i]]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, ShardListsTest, testing::ValuesIn(kKinds),
                         [](const auto& info) { return std::string(info.param.name); });

// An exp errs by 2^-22 and its argument's 2^-23 of itself, below 2^-18 where it counts (arguments
// above -16; what lies below is 1e-7 of the sum); 16 + 13 + 1 + 6 additions by 2^-24 each.
constexpr double kSumTolerance = 0x1p-18;

TEST(ShardNorm, IsMaximumAndSum) {
  for (const int64_t columns : {1, 4095, 4096, 10000, 150000}) {
    std::mt19937 random(5);
    std::vector<std::vector<float>> logits(4, std::vector<float>(columns));
    for (auto& row : logits) {
      for (float& v : row) v = Normal(0, random);
    }
    logits[1][columns / 2] = -kInf;
    logits[2][columns / 3] = NAN;
    logits[3].assign(columns, -kInf);
    TestStep test(logits, columns, 50);
    for (int r = 0; r < 4; ++r) {
      SampleTask task;
      task.logits_row = r;
      task.scored_id = r == 0 ? 50 : static_cast<int32_t>(49 + r * columns);  // here, here, beyond
      test.tasks.push_back(task);
      ShardJob job;
      job.task = r;
      job.wants_norm = true;
      test.jobs.push_back(job);
    }
    const SampleStep& step = test.Upload();
    TestStream stream;
    ASSERT_EQ(LaunchShardTiles(step, 0, 4, stream), cudaSuccess);
    ASSERT_EQ(LaunchShardLists(step, 0, 4, 0, stream), cudaSuccess);
    const std::vector<ShardSummary> got = test.GetSummaries();
    for (int r = 0; r < 4; ++r) {
      SCOPED_TRACE(testing::Message() << columns << " columns, row " << r);
      float max = -kInf;
      for (float v : logits[r]) max = std::fmax(max, v);
      EXPECT_EQ(got[r].max, max);
      EXPECT_EQ(got[r].has_scored, r < 2 ? 1 : 0);
      if (r < 2) {
        EXPECT_EQ(got[r].scored, logits[r][r == 0 ? 0 : columns - 1]);
      }
      double sum = 0;
      for (float v : logits[r]) sum += v == -kInf ? 0 : std::exp(double{v} - double{max});
      if (r == 2) {
        EXPECT_TRUE(std::isnan(got[r].sum));
      } else {
        EXPECT_NEAR(got[r].sum, sum, sum * kSumTolerance);
      }
    }
  }
}

TEST(ShardLists, RefuseBadSizesAndDoNothingForNoJobs) {
  TestStep test({{1.0f, 2.0f}}, 2);
  SampleStep step = test.Upload();
  TestStream stream;
  EXPECT_EQ(LaunchShardTiles(step, 0, 0, stream), cudaSuccess);
  EXPECT_EQ(LaunchShardLists(step, 3, 3, 0, stream), cudaSuccess);
  EXPECT_EQ(LaunchShardTiles(step, 1, 0, stream), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchShardLists(step, 0, 1, kMaxListed + 1, stream), cudaErrorInvalidValue);
  step.columns = kMaxTiles * kTileColumns + 1;
  EXPECT_EQ(LaunchShardTiles(step, 0, 1, stream), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
