// The real GPU worker's model, over emulated GPUs, against transformers and against the CPU
// backend: every family, 1, 2 and 4 ranks over the NCCL stand-in, prompts whole and in chunks.
//
// Forced along the recorded tokens, so that one step's rounding does not derail the next ones.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "gtest/gtest.h"
#include "tests/worker/golden_model.h"

namespace lapidary {
namespace {

using ::testing::ValuesIn;

// docs/numerics.md, "What a GPU may change": the roundings of the GPU and of the CPU's bf16,
// against the CPU's bf16 against fp32, as a ratio of root mean squares; how far the largest of a
// row's normally distributed errors may lie from zero in root mean squares; what e4m3 rounds by
// against bf16.
constexpr double kMoreRoundings = 2, kLargestInRms = 6, kE4m3Coarser = 16;

std::vector<double> LogProbs(const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float v : logits) sum += std::exp(v - top);
  std::vector<double> result;
  for (const float v : logits) result.push_back(v - top - std::log(sum));
  return result;
}

double Quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

// One position: errors of log-probabilities over the vocabulary, and the likeliest token.
struct Errors {
  double rms = 0, largest = 0;
  bool same_token = false;
  double gap = 0;  // of the two likeliest, in `reference`
};
Errors Compare(const std::vector<float>& logits, const std::vector<float>& reference) {
  const std::vector<double> ours = LogProbs(logits), theirs = LogProbs(reference);
  Errors e;
  double squares = 0;
  for (size_t id = 0; id < ours.size(); ++id) {
    const double error = std::abs(ours[id] - theirs[id]);
    squares += error * error;
    e.largest = error <= e.largest ? e.largest : error;  // also when it is not a number
  }
  e.rms = std::sqrt(squares / static_cast<double>(ours.size()));
  const auto best = std::max_element(theirs.begin(), theirs.end());
  double second = -1e30;
  for (auto it = theirs.begin(); it != theirs.end(); ++it) {
    if (it != best) second = std::max(second, *it);
  }
  e.gap = *best - second;
  e.same_token = std::max_element(ours.begin(), ours.end()) - ours.begin() == best - theirs.begin();
  return e;
}

// What is printed at the end, for docs/numerics.md.
std::vector<std::string>& Table() {
  static auto& table = *new std::vector<std::string>;
  return table;
}
class PrintTable : public ::testing::Environment {
 public:
  void TearDown() override {
    std::printf(
        "\n| checkpoint | CPU bf16 - fp32: median | GPU - CPU bf16: median | 99 %% | largest "
        "| tolerance | beyond | tokens: all, decided, different |\n|---|---|---|---|---|---|---|"
        "---|\n");
    for (const std::string& line : Table()) std::printf("%s\n", line.c_str());
  }
};
const auto* const kPrintTable = ::testing::AddGlobalTestEnvironment(new PrintTable);

constexpr int kContinued = 6;  // of the recorded continuation

// All positions of all cases, in chunks; the cases side by side.
absl::StatusOr<std::vector<Logits>> Forced(GoldenGroup& group, const GoldenModel& model,
                                           int chunk) {
  std::vector<GoldenGroup::Sequence> sequences(model.cases.size());
  std::vector<Logits> logits(model.cases.size());
  for (size_t i = 0; i < model.cases.size(); ++i) {
    sequences[i].ids = model.cases[i].prompt;
    const std::vector<TokenId>& more = model.cases[i].continuation;
    sequences[i].ids.insert(sequences[i].ids.end(), more.begin(), more.begin() + kContinued);
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

struct GoldenRun {
  std::string model;
  int tp = 1;
  ComputeType compute = ComputeType::kBf16;
  std::string kv_type = "auto";
  int chunk = 4096;  // prompt tokens per step

  std::string Name() const {
    std::string name = model + "_tp" + std::to_string(tp);
    if (compute == ComputeType::kFp8) name += "_fp8";
    if (kv_type != "auto") name += "_kv_" + kv_type;
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
  }
};

std::ostream& operator<<(std::ostream& out, const GoldenRun& run) { return out << run.Name(); }

class GpuGoldenTest : public ::testing::TestWithParam<GoldenRun> {};

TEST_P(GpuGoldenTest, AgreesWithTheCpu) {
  const GoldenRun& run = GetParam();
  const absl::StatusOr<GoldenModel> model = ReadGolden(run.model);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto logits = [&](const GroupOptions& options,
                          int chunk) -> absl::StatusOr<std::vector<Logits>> {
    ASSIGN_OR_RETURN(const auto group, GoldenGroup::Create(model->path, options));
    return Forced(*group, *model, chunk);
  };
  const auto exact = logits({.compute = ComputeType::kFp32}, 4096);
  ASSERT_TRUE(exact.ok()) << exact.status();
  const auto cpu = logits({.compute = ComputeType::kBf16}, 4096);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  // The product's own library, on a machine with GPUs: docs/gpu.md.
  const char* const library = std::getenv("LAPIDARY_GPU_LIBRARY");
  const auto gpu = logits({.tp = run.tp,
                           .compute = run.compute,
                           .kv_type = run.kv_type,
                           .max_logits_rows = 64,
                           .gpu_library = library != nullptr ? library : LAPIDARY_GPU_LIBRARY},
                          run.chunk);
  ASSERT_TRUE(gpu.ok()) << gpu.status();

  std::vector<double> cpu_rms;  // of each position, against fp32
  std::vector<Errors> errors;   // of the GPU, against the CPU's bf16
  for (size_t c = 0; c < gpu->size(); ++c) {
    for (size_t row = 0; row < (*gpu)[c].size(); ++row) {
      cpu_rms.push_back(Compare((*cpu)[c][row], (*exact)[c][row]).rms);
      errors.push_back(Compare((*gpu)[c][row], (*cpu)[c][row]));
    }
  }
  const bool e4m3 = run.compute == ComputeType::kFp8 || run.kv_type == "fp8";
  const double more = kMoreRoundings * (e4m3 ? kE4m3Coarser : 1);
  const double typical = Quantile(cpu_rms, 0.5), usual = Quantile(cpu_rms, 0.9);
  std::vector<double> rms, tolerances;
  double largest = 0;
  int beyond = 0, decided = 0, different = 0;
  for (size_t i = 0; i < errors.size(); ++i) {
    const Errors& e = errors[i];
    const double tolerance = kLargestInRms * more * std::clamp(cpu_rms[i], usual, 2 * usual);
    rms.push_back(e.rms);
    tolerances.push_back(tolerance);
    largest = std::max(largest, e.largest);
    if (!(e.largest <= tolerance)) ++beyond;
    if (e.gap <= 2 * tolerance) continue;
    ++decided;
    if (!e.same_token) ++different;
  }
  char line[256];
  std::snprintf(line, sizeof line, "| %s | %.4f | %.4f | %.4f | %.3f | %.3f | %d | %zu, %d, %d |",
                run.Name().c_str(), typical, Quantile(rms, 0.5), Quantile(rms, 0.99), largest,
                Quantile(tolerances, 0.5), beyond, errors.size(), decided, different);
  Table().push_back(line);

  EXPECT_LE(Quantile(rms, 0.5), more * typical);
  EXPECT_GE(Quantile(rms, 0.5), 0.3 * typical) << "nothing is rounded: not a GPU's numbers";
  // Where the weights of two experts are nearly equal, a rounding sends a token to the other one,
  // as the CPU's bf16 does against fp32.
  const bool experts = run.model.starts_with("moe");
  EXPECT_LE(beyond, experts ? static_cast<int>(errors.size()) / 20 : 0);
  EXPECT_EQ(different, 0);
  if (!e4m3) {
    EXPECT_GT(decided, 0);
  }
}

// Every family; every second time two ranks, and chunks that end inside pages.
std::vector<GoldenRun> Runs() {
  std::vector<GoldenRun> runs;
  for (const std::string& name : GoldenNames()) {
    runs.push_back({.model = name});
    runs.push_back({.model = name, .tp = 2, .chunk = 7});
  }
  for (const char* name : {"dense-gpu", "moe-gpu", "ple-gpu"}) {
    runs.push_back({.model = name, .tp = 4, .chunk = 64});
    runs.push_back({.model = name, .compute = ComputeType::kFp8});
    runs.push_back({.model = name, .tp = 2, .kv_type = "fp8"});
  }
  return runs;
}

INSTANTIATE_TEST_SUITE_P(Families, GpuGoldenTest, ValuesIn(Runs()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace lapidary
