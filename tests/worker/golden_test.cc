// The whole forward pass against Hugging Face transformers: every family, 1, 2 and 4 ranks, prompts
// computed whole, in chunks of 7 and token by token. Prints the golden table at the end.
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
#include "model/shard_plan.h"
#include "model/weight_bytes.h"
#include "tests/worker/golden_model.h"

namespace lapidary {
namespace {

using ::testing::Combine;
using ::testing::Values;
using ::testing::ValuesIn;

// transformers' own fp32 rounding moves these numbers by up to 1.25e-5 (fp32_noise in golden.json);
// ours sums in another order and may err as much again, twice over for safety.
constexpr double kMaxLogProbError = 5e-5;
// A logit carries its own error and not the normaliser's, which may have the other sign.
constexpr double kMaxLogitError = 1e-4;

struct Comparison {
  double max_error = 0;  // over all log-probabilities, of actual and of top tokens
  std::string worst;     // where
  int tokens_identical = 0;
  int tokens = 0;
};

// What the table at the end says, by checkpoint and ranks.
std::map<std::pair<std::string, int>, Comparison>& Table() {
  static auto& table = *new std::map<std::pair<std::string, int>, Comparison>;
  return table;
}

class PrintTable : public ::testing::Environment {
 public:
  void TearDown() override {
    std::printf("\n%-24s %-14s %4s  %-22s %s\n", "checkpoint", "family", "TP",
                "max |log-prob error|", "tokens identical");
    for (const auto& [key, row] : Table()) {
      const absl::StatusOr<GoldenModel> model =
          ReadGolden(key.first.substr(0, key.first.find(',')));
      std::printf("%-24s %-14s %4d  %-22.1e %d of %d\n", key.first.c_str(),
                  model.ok() ? model->family.c_str() : "?", key.second, row.max_error,
                  row.tokens_identical, row.tokens);
    }
  }
};
const auto* const kPrintTable = ::testing::AddGlobalTestEnvironment(new PrintTable);

double LogSumExp(const std::vector<float>& row) {
  const double top = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float v : row) sum += std::exp(v - top);
  return top + std::log(sum);
}

TokenId ArgMax(const std::vector<float>& row) {
  return static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
}

// One case on its way through the group: fed in chunks, then one greedy token per step.
struct CaseRun {
  const GoldenCase* expected;
  GoldenGroup::Sequence sequence;

  int total() const {
    return static_cast<int>(expected->prompt.size() + expected->continuation.size()) - 1;
  }
  bool done() const { return sequence.computed >= total(); }
  int next_count(int chunk) const {
    const int left = static_cast<int>(sequence.ids.size()) - sequence.computed;
    return std::min(chunk, left);
  }
};

void CompareRow(const CaseRun& run, int position, const std::vector<float>& row,
                const std::string& where, Comparison& comparison) {
  const GoldenCase& c = *run.expected;
  const double normaliser = LogSumExp(row);
  auto compare = [&](TokenId id, double expected) {
    const double error = std::abs(row[id] - normaliser - expected);
    if (!(error <= comparison.max_error)) {  // also when it is not a number
      comparison.max_error = error;
      comparison.worst = where + " position " + std::to_string(position) + " token " +
                         std::to_string(id) + ": expected " + std::to_string(expected) + ", got " +
                         std::to_string(row[id] - normaliser);
    }
  };
  const int prompt = static_cast<int>(c.prompt.size());
  const TokenId actual =
      position + 1 < prompt ? c.prompt[position + 1] : c.continuation[position + 1 - prompt];
  compare(actual, c.logprobs[position]);
  for (size_t k = 0; k < c.top_ids[position].size(); ++k) {
    compare(c.top_ids[position][k], c.top_logprobs[position][k]);
  }
  if (position + 1 < prompt) return;
  ++comparison.tokens;
  if (ArgMax(row) == actual) ++comparison.tokens_identical;
  if (position + 1 > prompt) return;
  for (size_t id = 0; id < row.size(); ++id) {
    EXPECT_NEAR(row[id], c.last_prompt_logits[id], kMaxLogitError) << where << " token " << id;
  }
}

// Runs the cases side by side in one batch until all are done. A token computed greedily goes back
// in as the next input, so a wrong one derails everything after it.
absl::Status RunTogether(GoldenGroup& group, const std::vector<CaseRun*>& runs, int chunk,
                         const std::string& where, Comparison& comparison) {
  for (CaseRun* run : runs) run->sequence.ids = run->expected->prompt;
  for (;;) {
    std::vector<CaseRun*> active;
    std::vector<GoldenGroup::Sequence*> sequences;
    std::vector<int> counts;
    for (CaseRun* run : runs) {
      if (run->done()) continue;
      active.push_back(run);
      sequences.push_back(&run->sequence);
      counts.push_back(run->next_count(chunk));
    }
    if (active.empty()) break;
    const absl::StatusOr<Logits> logits = group.Step(sequences, counts);
    if (!logits.ok()) return logits.status();
    size_t row = 0;
    for (size_t b = 0; b < active.size(); ++b) {
      CaseRun& run = *active[b];
      for (int i = 0; i < counts[b]; ++i, ++row) {
        CompareRow(run, run.sequence.computed - counts[b] + i, (*logits)[row],
                   where + " " + run.expected->name, comparison);
      }
      if (run.sequence.computed == static_cast<int>(run.sequence.ids.size())) {
        run.sequence.ids.push_back(ArgMax((*logits)[row - 1]));
      }
    }
  }
  for (CaseRun* run : runs) group.Release(run->sequence);
  return absl::OkStatus();
}

class GoldenTest : public ::testing::TestWithParam<std::tuple<std::string, int>> {};

// All cases of a checkpoint, in chunks of several sizes.
void CompareWithTransformers(const std::string& name, int tp, const std::string& kv_format,
                             Comparison& comparison) {
  const absl::StatusOr<GoldenModel> model = ReadGolden(name);
  ASSERT_TRUE(model.ok()) << model.status();
  // Whole prompts alone, with the logits in slices; then all cases mixed into one batch, where one
  // may decode while another is still being read.
  const std::vector<std::pair<int, bool>> chunks_and_mixed = {{4096, false}, {7, true}, {1, true}};
  for (const auto& [chunk, mixed] : chunks_and_mixed) {
    GroupOptions options{.tp = tp, .kv_format = kv_format};
    if (!mixed) options.max_logits_rows = 100;
    absl::StatusOr<std::unique_ptr<GoldenGroup>> group = GoldenGroup::Create(model->path, options);
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<CaseRun> runs;
    for (const GoldenCase& c : model->cases)
      runs.push_back(CaseRun{.expected = &c, .sequence = {}});
    const std::string where = "chunk " + std::to_string(chunk);
    if (mixed) {
      std::vector<CaseRun*> all;
      for (CaseRun& run : runs) all.push_back(&run);
      const absl::Status status = RunTogether(**group, all, chunk, where, comparison);
      ASSERT_TRUE(status.ok()) << status;
    } else {
      for (CaseRun& run : runs) {
        const absl::Status status = RunTogether(**group, {&run}, chunk, where, comparison);
        ASSERT_TRUE(status.ok()) << status;
      }
    }
  }
  Table()[{name + (kv_format == "auto" ? "" : ", " + kv_format), tp}] = comparison;
  EXPECT_LE(comparison.max_error, kMaxLogProbError) << comparison.worst;
  EXPECT_EQ(comparison.tokens_identical, comparison.tokens);
}

TEST_P(GoldenTest, AgreesWithTransformers) {
  const auto& [name, tp] = GetParam();
  Comparison comparison;
  CompareWithTransformers(name, tp, "auto", comparison);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, Combine(ValuesIn(GoldenNames()), Values(1, 2, 4)),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_tp" + std::to_string(std::get<1>(info.param));
                         });

// Global pages of K = V layers in every format, for the checkpoints that have such layers.
class KvFormatTest : public ::testing::TestWithParam<std::tuple<std::string, int, std::string>> {};

TEST_P(KvFormatTest, AgreesWithTransformers) {
  const auto& [name, tp, format] = GetParam();
  Comparison comparison;
  CompareWithTransformers(name, tp, format, comparison);
}

INSTANTIATE_TEST_SUITE_P(KeyIsValue, KvFormatTest,
                         Combine(Values("dense-awkward", "dense-gpu", "moe-awkward", "moe-gpu",
                                        "unified-awkward", "unified-gpu"),
                                 Values(1, 2), Values("split", "folded", "single")),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_tp" + std::to_string(std::get<1>(info.param)) + "_" +
                                  std::get<2>(info.param);
                         });

// What `lapidary inspect` says a rank holds is what it holds.
TEST_P(GoldenTest, RanksHoldWhatInspectSays) {
  const auto& [name, tp] = GetParam();
  for (const ComputeType compute : {ComputeType::kFp32, ComputeType::kBf16}) {
    const absl::StatusOr<std::unique_ptr<GoldenGroup>> group =
        GoldenGroup::Create("tests/golden/models/" + name, {.tp = tp, .compute = compute});
    ASSERT_TRUE(group.ok()) << group.status();
    const Checkpoint& checkpoint = (*group)->checkpoint();
    const absl::StatusOr<ShardPlan> plan = PlanShards(checkpoint.spec(), tp);
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (int rank = 0; rank < tp; ++rank) {
      const auto said = static_cast<double>(
          PackedWeightBytes(checkpoint.spec(), plan->ranks[rank], &checkpoint, compute));
      EXPECT_NEAR(static_cast<double>((*group)->runner(rank).weights_bytes()), said, 0.01 * said)
          << "rank " << rank;
    }
  }
}

// The share of every rank matters: with one rank's weights zeroed the tokens change.
class ZeroedRankTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ZeroedRankTest, ChangesTheTokens) {
  const absl::StatusOr<GoldenModel> model = ReadGolden(GetParam());
  ASSERT_TRUE(model.ok()) << model.status();
  for (int rank = 0; rank < 2; ++rank) {
    absl::StatusOr<std::unique_ptr<GoldenGroup>> group =
        GoldenGroup::Create(model->path, {.tp = 2, .zeroed_rank = rank});
    ASSERT_TRUE(group.ok()) << group.status();
    GoldenGroup::Sequence sequence;
    sequence.ids = model->cases[1].prompt;
    const int count = static_cast<int>(sequence.ids.size());
    const absl::StatusOr<Logits> logits = (*group)->Step({&sequence}, {count});
    ASSERT_TRUE(logits.ok()) << logits.status();
    int differing = 0;
    for (int i = 0; i < count; ++i) {
      differing += ArgMax((*logits)[i]) != model->cases[1].top_ids[i][0];
    }
    EXPECT_GT(differing, count / 4) << "rank " << rank << " of 2";
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ZeroedRankTest, ValuesIn(GoldenNames()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace lapidary
