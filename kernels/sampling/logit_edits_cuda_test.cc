// Edits of logits, bit for bit what the host's functions make of them.
#include <gtest/gtest.h>

#include <map>

#include "kernels/sampling/sample_test_step.h"

namespace lapidary {
namespace {

constexpr int kColumns = 5000, kFirstId = 300;

struct Expected {
  std::vector<float> logits;
  std::map<int, float> raws;  // by edit
  PendingEdit pending;
};

// The plain reference. `pending` is a column, or -1.
Expected ReferenceEdits(std::vector<float> logits, const SampleTask& task,
                        const std::vector<TokenEdit>& edits, int pending) {
  Expected expected;
  for (int e = task.first_edit; e < task.first_edit + task.edits;) {
    const TokenEdit& first = edits[e];
    float value = logits[first.column];
    expected.raws[e] = value;
    if (task.penalized && first.column == pending) pending = -2;
    const bool is_pending = pending == -2;
    int end = e;
    for (; end < task.first_edit + task.edits && edits[end].column == first.column; ++end) {
      value += edits[end].bias;
    }
    if (task.penalized) {
      value = ApplyPenalties(value, task.penalties, first.in_prompt,
                             first.output_count + (is_pending ? 1 : 0));
    }
    if (is_pending) pending = -1;
    logits[first.column] = first.forbidden ? -kInf : value;
    e = end;
  }
  if (pending >= 0) {
    expected.pending = {pending, logits[pending]};
    logits[pending] = ApplyPenalties(logits[pending], task.penalties, false, 1);
  }
  expected.logits = std::move(logits);
  return expected;
}

TEST(LogitEdits, AreTheHostsFunctions) {
  constexpr int kRows = 9;
  std::vector<std::vector<float>> logits;
  for (int r = 0; r < kRows; ++r) logits.push_back(RandomFloats(kColumns, 4, 20 + r));
  logits[1][17] = NAN;
  logits[1][18] = -kInf;
  logits[1][19] = kInf;
  // Row r of logits belongs to task kRows - 1 - r. The pending ids: none, in the list, not in it,
  // outside of the shard on both sides.
  const std::vector<int32_t> pending_columns = {-9, -9, 40, 41, -kFirstId, kColumns, -1, 0, 42};
  std::vector<int32_t> ids;
  for (int32_t column : pending_columns) ids.push_back(column + kFirstId);
  DeviceArray<int32_t> device_ids(ids);
  TestStep test(logits, kColumns + 3, kFirstId);
  std::mt19937 random(4);
  std::vector<int32_t> edited;
  for (int t = 0; t < kRows; ++t) {
    SampleTask task;
    task.logits_row = kRows - 1 - t;
    task.first_edit = static_cast<int32_t>(test.edits.size());
    const int step = t == 3 ? 1 : t == 4 ? 5000 : 40;  // every column, one, a few
    for (int column = t == 8 ? 43 : 0; column < kColumns; column += step) {
      const int times = random() % 10 == 0 ? 3 : 1;
      for (int i = 0; i < times; ++i) {
        TokenEdit edit;
        edit.column = column;
        if (times > 1 || random() % 2 == 0) edit.bias = 0.1f * static_cast<float>(random() % 100);
        if (i == 0) {
          edit.output_count = static_cast<int32_t>(random() % 4);
          edit.in_prompt = random() % 3 == 0;
          edit.forbidden = random() % 7 == 0;
        }
        test.edits.push_back(edit);
      }
    }
    task.edits = static_cast<int32_t>(test.edits.size()) - task.first_edit;
    task.penalized = t > 0;
    task.penalties = {1.3f, 0.4f, t % 2 == 0 ? 0.7f : -0.3f};
    if (pending_columns[t] != -9) task.pending_id = device_ids.data() + t;
    if (t != 5) edited.push_back(t);  // task 5 is left alone
    test.tasks.push_back(task);
  }
  const SampleStep& step = test.Upload();
  DeviceArray<int32_t> device_edited(edited);
  TestStream stream;
  ASSERT_EQ(LaunchLogitEdits(step, device_edited.data(), static_cast<int>(edited.size()), stream),
            cudaSuccess);
  const std::vector<float> raws = test.GetEditRaws();
  const std::vector<PendingEdit> pending = test.GetPending();
  for (int t = 0; t < kRows; ++t) {
    const int row = kRows - 1 - t;
    const std::vector<float> got = test.Row(row);
    if (t == 5) {
      for (int c = 0; c < kColumns; ++c) ASSERT_EQ(Bits(got[c]), Bits(logits[row][c]));
      continue;
    }
    const SampleTask& task = test.tasks[t];
    int32_t column = task.pending_id == nullptr ? -1 : pending_columns[t];
    if (column >= kColumns) column = -1;
    const Expected expected = ReferenceEdits(logits[row], task, test.edits, std::max(column, -1));
    for (int c = 0; c < kColumns; ++c) {
      ASSERT_EQ(Bits(got[c]), Bits(expected.logits[c])) << "task " << t << ", column " << c;
    }
    for (const auto& [edit, raw] : expected.raws) ASSERT_EQ(Bits(raws[edit]), Bits(raw));
    if (task.pending_id != nullptr) {
      EXPECT_EQ(pending[t].column, expected.pending.column) << t;
      if (expected.pending.column >= 0) {
        EXPECT_EQ(pending[t].raw, expected.pending.raw) << t;
      }
    }
  }
}

TEST(LogitEdits, NoneIsFine) {
  TestStep test({{1.0f}}, 1);
  TestStream stream;
  EXPECT_EQ(LaunchLogitEdits(test.Upload(), nullptr, 0, stream), cudaSuccess);
  EXPECT_EQ(LaunchLogitEdits(test.step(), nullptr, -1, stream), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
