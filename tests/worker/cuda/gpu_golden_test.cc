// The real GPU worker's model, over emulated GPUs, against transformers and against the CPU
// backend: every family, 1, 2 and 4 ranks over the NCCL stand-in, prompts whole and in chunks.
//
// Forced along the recorded tokens, so that one step's rounding does not derail the next ones.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/golden_model.h"

namespace lapidary {
namespace {

using ::testing::Combine;
using ::testing::Values;
using ::testing::ValuesIn;

// docs/numerics.md, "What a GPU may change".
constexpr double kMaxError = 0.35, kMeanError = 0.05;

std::vector<double> LogProbs(const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float v : logits) sum += std::exp(v - top);
  std::vector<double> result;
  for (const float v : logits) result.push_back(v - top - std::log(sum));
  return result;
}

struct Comparison {
  double worst = 0, total = 0;
  int64_t count = 0;
  int tokens = 0, decided = 0, different = 0;  // decided: the gap of the best two is large enough

  void Add(const std::vector<double>& ours, const std::vector<double>& theirs) {
    for (size_t id = 0; id < ours.size(); ++id) {
      if (theirs[id] < -12) continue;  // nobody will ever ask
      const double error = std::abs(ours[id] - theirs[id]);
      worst = error <= worst ? worst : error;  // also when it is not a number
      total += error;
      ++count;
    }
    ++tokens;
    const auto best = std::max_element(theirs.begin(), theirs.end());
    double second = -1e30;
    for (auto it = theirs.begin(); it != theirs.end(); ++it) {
      if (it != best) second = std::max(second, *it);
    }
    if (*best - second <= 2 * kMaxError) return;
    ++decided;
    const auto chosen = std::max_element(ours.begin(), ours.end()) - ours.begin();
    if (chosen != best - theirs.begin()) ++different;
  }
};

std::map<std::string, Comparison>& Table() {
  static auto& table = *new std::map<std::string, Comparison>;
  return table;
}
class PrintTable : public ::testing::Environment {
 public:
  void TearDown() override {
    std::printf("\n%-36s %10s %10s  %s\n", "checkpoint, ranks, numbers", "largest", "mean",
                "tokens: all, decided, different");
    for (const auto& [name, c] : Table()) {
      std::printf("%-36s %10.4f %10.5f  %d, %d, %d\n", name.c_str(), c.worst,
                  c.total / static_cast<double>(std::max<int64_t>(1, c.count)), c.tokens, c.decided,
                  c.different);
    }
  }
};
const auto* const kPrintTable = ::testing::AddGlobalTestEnvironment(new PrintTable);

// All positions of all cases, in chunks; the cases side by side.
absl::StatusOr<std::vector<Logits>> Forced(GoldenGroup& group, const GoldenModel& model,
                                           int chunk) {
  std::vector<GoldenGroup::Sequence> sequences(model.cases.size());
  std::vector<Logits> logits(model.cases.size());
  for (size_t i = 0; i < model.cases.size(); ++i) {
    sequences[i].ids = model.cases[i].prompt;
    const std::vector<TokenId>& more = model.cases[i].continuation;
    sequences[i].ids.insert(sequences[i].ids.end(), more.begin(), more.begin() + 24);
  }
  while (true) {
    std::vector<GoldenGroup::Sequence*> active;
    std::vector<int> counts;
    std::vector<size_t> index;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int left = static_cast<int>(sequences[i].ids.size()) - sequences[i].computed;
      if (left == 0) continue;
      active.push_back(&sequences[i]);
      // The prompt in chunks, then token by token beside the others' chunks.
      const int prompt_left =
          static_cast<int>(model.cases[i].prompt.size()) - sequences[i].computed;
      counts.push_back(prompt_left > 0 ? std::min(chunk, prompt_left) : 1);
      index.push_back(i);
    }
    if (active.empty()) break;
    absl::StatusOr<Logits> rows = group.Step(active, counts);
    if (!rows.ok()) return rows.status();
    size_t row = 0;
    for (size_t a = 0; a < active.size(); ++a) {
      for (int i = 0; i < counts[a]; ++i) logits[index[a]].push_back((*rows)[row++]);
    }
  }
  for (GoldenGroup::Sequence& sequence : sequences) group.Release(sequence);
  return logits;
}

class GpuGoldenTest : public ::testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  void Compare(const std::string& name, const GroupOptions& gpu, const std::string& label) {
    const absl::StatusOr<GoldenModel> model = ReadGolden(name);
    ASSERT_TRUE(model.ok()) << model.status();
    auto cpu_group = GoldenGroup::Create(model->path, {.compute = ComputeType::kBf16});
    ASSERT_TRUE(cpu_group.ok()) << cpu_group.status();
    const auto expected = Forced(**cpu_group, *model, 4096);
    ASSERT_TRUE(expected.ok()) << expected.status();
    auto gpu_group = GoldenGroup::Create(model->path, gpu);
    ASSERT_TRUE(gpu_group.ok()) << gpu_group.status();
    Comparison& comparison = Table()[name + ", " + label];
    for (const int chunk : {4096, 7}) {
      const auto got = Forced(**gpu_group, *model, chunk);
      ASSERT_TRUE(got.ok()) << got.status();
      for (size_t c = 0; c < got->size(); ++c) {
        for (size_t row = 0; row < (*got)[c].size(); ++row) {
          const double before = comparison.worst;
          comparison.Add(LogProbs((*got)[c][row]), LogProbs((*expected)[c][row]));
          if (comparison.worst > std::max(before, kMaxError)) {
            std::printf("chunk %d, case %s (%zu), position %zu: %.4f\n", chunk,
                        model->cases[c].name.c_str(), model->cases[c].prompt.size(), row,
                        comparison.worst);
          }
        }
      }
    }
    EXPECT_LE(comparison.worst, kMaxError);
    EXPECT_LE(comparison.total / static_cast<double>(comparison.count), kMeanError);
    EXPECT_EQ(comparison.different, 0);
    EXPECT_GT(comparison.decided, 0);
  }
};

TEST_P(GpuGoldenTest, AgreesWithTheCpu) {
  const auto& [name, tp] = GetParam();
  Compare(name,
          {.tp = tp,
           .compute = ComputeType::kBf16,
           .max_logits_rows = 64,
           .gpu_library = LAPIDARY_GPU_LIBRARY},
          "TP " + std::to_string(tp) + ", bf16");
}

INSTANTIATE_TEST_SUITE_P(Families, GpuGoldenTest, Combine(ValuesIn(GoldenNames()), Values(1, 2)),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_tp" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace lapidary
