// Messages of one to eight ranks become tokens, lists and logprobs.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/sampling/sample_reference.h"
#include "kernels/sampling/sample_test_step.h"

namespace lapidary {
namespace {

constexpr int kIdsPerRank = 1000;

struct Message {
  std::vector<ShardSummary> summaries;
  std::vector<ShardEntry> entries;
};

// A list in order of at most `count` tokens of a rank, filled up with nobody.
std::vector<ShardEntry> RandomList(int rank, int count, int valid, bool ties,
                                   std::mt19937& random) {
  std::vector<int32_t> ids;
  for (int i = 0; i < kIdsPerRank; ++i) ids.push_back(rank * kIdsPerRank + i);
  std::shuffle(ids.begin(), ids.end(), random);
  std::normal_distribution<float> normal(0, 3);
  std::vector<ShardEntry> list(count);
  for (int i = 0; i < std::min(count, valid); ++i) {
    const float value = ties ? std::round(normal(random)) : normal(random);
    list[i].key = TokenKey(value);
    list[i].id = ids[i];
    list[i].raw = value + 0.25f;
  }
  std::sort(list.begin(), list.end(), [](const ShardEntry& a, const ShardEntry& b) {
    return a.key != b.key ? a.key > b.key : a.id < b.id;
  });
  return list;
}

std::vector<ReferenceToken> TokensOf(const std::vector<Message>& messages, int at, int count) {
  std::vector<ReferenceToken> tokens;
  for (const Message& message : messages) {
    for (int i = 0; i < count; ++i) {
      const ShardEntry& entry = message.entries[at + i];
      if (entry.key != 0) tokens.push_back({ValueOfKey(entry.key), entry.raw, entry.id});
    }
  }
  return tokens;
}

// x - max - log(sum): the logarithm errs by 2^-22 of itself (below 12) and by the sum's 2^-20; the
// result is rounded.
void ExpectLogprob(float got, double logit, double max, double sum) {
  const double expected = logit - max - std::log(sum);
  EXPECT_NEAR(got, expected, 0x1p-18 + std::abs(expected) * 0x1p-24);
}

class DrawTokensTest : public testing::TestWithParam<int> {};

TEST_P(DrawTokensTest, AreTheReferencesOfAllLists) {
  const int ranks = GetParam();
  std::mt19937 random(ranks);
  constexpr int kRows = 120;
  std::vector<SampleTask> tasks(kRows);
  std::vector<Message> messages(ranks);
  for (Message& message : messages) message.summaries.resize(kRows);
  int at = 0, top = 0, thresholds = 0;
  DeviceArray<int32_t> ids_out(kRows);
  for (int row = 0; row < kRows; ++row) {
    SampleTask& task = tasks[row];
    constexpr int kCounts[] = {1, 2, 5, 64, 255, 256};
    task.candidates = row % 10 == 9 ? 0 : kCounts[random() % 6];
    task.greedy = row % 5 == 0;
    task.wants_logprobs = row % 3 != 0;
    task.listed = task.wants_logprobs ? static_cast<int32_t>(random() % 30) : 0;
    task.scale = 1.44269504f / (0.2f + 0.1f * static_cast<float>(random() % 30));
    task.top_p = random() % 2 == 0 ? 1.0 : 0.01 * static_cast<double>(random() % 100);
    task.min_weight = random() % 2 == 0 ? 1 : int64_t{1} << random() % 45;
    task.bits = uint64_t{random()} << 32 | random();
    if (row % 10 == 7) task.bits = row % 20 == 7 ? 0 : ~uint64_t{0};
    task.id_out = row % 4 == 0 ? nullptr : ids_out.data() + row;
    task.listed_at = at;
    task.candidates_at = at + task.listed;
    at += task.listed + task.candidates;
    task.top_at = top;
    top += task.listed;
    if (row % 10 == 4) {
      task.candidates = 1;
      task.threshold_row = thresholds++;
    }
    if (task.wants_logprobs && row % 2 == 0) task.scored_id = 5;
    const bool ties = row % 2 == 0;
    const int valid = row % 11 == 3 ? 0 : row % 11 == 6 ? 3 : 300;
    for (int r = 0; r < ranks; ++r) {
      Message& message = messages[r];
      for (const int count : {task.listed, at - task.candidates_at}) {
        const auto list = RandomList(r, count, valid, ties, random);
        message.entries.insert(message.entries.end(), list.begin(), list.end());
      }
      ShardSummary& summary = message.summaries[row];
      summary.max = -1.5f * static_cast<float>(r) + 4;
      summary.sum = 1.0f + static_cast<float>(random() % 1000);
      summary.has_scored = r == (row / 2) % ranks;
      summary.scored = summary.has_scored != 0 ? -2.5f : 99.0f;
    }
  }
  TestStep test({{0.0f}}, 1, 0, 0, ranks);
  test.tasks = tasks;
  test.entries = at;
  const SampleStep& step = test.Upload();
  std::vector<unsigned char> bytes(ranks * step.message_bytes + 1);
  for (int r = 0; r < ranks; ++r) {
    ASSERT_EQ(std::ssize(messages[r].entries), at);
    unsigned char* message = bytes.data() + r * step.message_bytes;
    std::memcpy(message, messages[r].summaries.data(), kRows * sizeof(ShardSummary));
    std::memcpy(message + kRows * sizeof(ShardSummary), messages[r].entries.data(),
                at * sizeof(ShardEntry));
  }
  test.messages().Set(bytes);
  DeviceArray<GpuThresholdRow> threshold_rows(thresholds + 1);
  TestStream stream;
  ASSERT_EQ(LaunchDraw(step, threshold_rows.data(), stream), cudaSuccess);

  const std::vector<SampleResult> results = test.GetResults();
  const std::vector<TopToken> tops = test.GetTop();
  const std::vector<GpuThresholdRow> begun = threshold_rows.Get();
  const std::vector<int32_t> ids = ids_out.Get();
  for (int row = 0; row < kRows; ++row) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks, row " << row);
    const SampleTask& task = tasks[row];
    const SampleResult& got = results[row];
    double max = -INFINITY, sum = 0;
    for (const Message& m : messages) max = std::fmax(max, m.summaries[row].max);
    for (const Message& m : messages) {
      sum += double{m.summaries[row].sum} * std::exp(double{m.summaries[row].max} - max);
    }
    // Listed tokens.
    std::vector<ReferenceToken> listed = TokensOf(messages, task.listed_at, task.listed);
    std::sort(listed.begin(), listed.end(), [](const ReferenceToken& a, const ReferenceToken& b) {
      return a.value != b.value ? a.value > b.value : a.id < b.id;
    });
    if (std::ssize(listed) > task.listed) listed.resize(task.listed);
    ASSERT_EQ(got.listed, std::ssize(listed));
    for (int i = 0; i < got.listed; ++i) {
      EXPECT_EQ(tops[task.top_at + i].id, listed[i].id);
      ExpectLogprob(tops[task.top_at + i].logprob, listed[i].raw, max, sum);
    }
    if (task.scored_id >= 0) ExpectLogprob(got.scored_logprob, -2.5, max, sum);
    // The token.
    if (task.candidates == 0) {
      EXPECT_EQ(got.id, -1);
      continue;
    }
    SampleTask as_drawn = task;
    as_drawn.greedy |= task.threshold_row >= 0;
    const ReferenceToken expected = DrawReference(
        as_drawn, TokensOf(messages, task.candidates_at, task.candidates), task.candidates, true);
    EXPECT_EQ(got.id, std::max(expected.id, 0));
    if (task.wants_logprobs) ExpectLogprob(got.logprob, expected.raw, max, sum);
    if (task.threshold_row >= 0) {
      const GpuThresholdRow& begin = begun[task.threshold_row];
      EXPECT_EQ(begin.task, row);
      EXPECT_EQ(begin.best_id, expected.id);
      EXPECT_EQ(begin.best_raw, expected.raw);
      EXPECT_EQ(begin.max, expected.value);
      EXPECT_EQ(begin.key, 0u);
      EXPECT_EQ(begin.searching, 0);
    }
    const bool puts_out = task.id_out != nullptr && task.threshold_row < 0;
    EXPECT_EQ(ids[row], puts_out ? got.id : -1);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, DrawTokensTest, testing::Values(1, 2, 3, 4, 8));

TEST(DrawTokens, InfinitiesAndNothing) {
  // Row 0: +inf alone; 1: two of them; 2: nobody; each with a broken or an empty norm.
  TestStep test({{0.0f}}, 1);
  std::vector<ShardSummary> summaries(3);
  std::vector<ShardEntry> entries(6);
  entries[0] = {TokenKey(kInf), 7, kInf, 0};
  entries[1] = {TokenKey(3.0f), 2, 3.0f, 0};
  entries[2] = {TokenKey(kInf), 4, kInf, 0};
  entries[3] = {TokenKey(kInf), 9, kInf, 0};
  summaries[0] = {kInf, NAN, 0, 0};
  summaries[1] = {kInf, NAN, 0, 0};
  summaries[2] = {-kInf, 0, 0, 0};
  for (int row = 0; row < 3; ++row) {
    SampleTask task;
    task.candidates = 2;
    task.candidates_at = task.listed_at = 2 * row;
    task.wants_logprobs = true;
    task.listed = 1;
    task.top_at = row;
    task.bits = ~uint64_t{0};
    test.tasks.push_back(task);
  }
  test.entries = 6;
  const SampleStep& step = test.Upload();
  std::vector<unsigned char> bytes(step.message_bytes + 1);
  std::memcpy(bytes.data(), summaries.data(), 3 * sizeof(ShardSummary));
  std::memcpy(bytes.data() + 3 * sizeof(ShardSummary), entries.data(), 6 * sizeof(ShardEntry));
  test.messages().Set(bytes);
  TestStream stream;
  ASSERT_EQ(LaunchDraw(step, nullptr, stream), cudaSuccess);
  const std::vector<SampleResult> results = test.GetResults();
  const float lowest = std::numeric_limits<float>::lowest();
  EXPECT_EQ(results[0].id, 7);
  EXPECT_EQ(results[1].id, 4);
  EXPECT_EQ(results[2].id, 0);
  for (int row = 0; row < 3; ++row) EXPECT_EQ(results[row].logprob, lowest) << row;
  EXPECT_EQ(results[2].listed, 0);
  SampleStep none = step;
  none.rows = 0;
  EXPECT_EQ(LaunchDraw(none, nullptr, stream), cudaSuccess);
  none.ranks = kMaxSampleRanks + 1;
  EXPECT_EQ(LaunchDraw(none, nullptr, stream), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
