// Gemma 3 270M from its GGUF file on a page of English, against what transformers computes from the
// same file dequantised (bench/quality/expected_270m.json). Runs where LAPIDARY_GEMMA3_GGUF names
// the file; scripts/test fetches it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/worker/golden_model.h"

namespace lapidary {
namespace {

constexpr int kChunk = 92;  // a tenth of the page: logits of a chunk are 96 MB

struct Limits {
  ComputeType compute;
  int tp;
  double max_mean;    // |mean difference| per token in nat
  double max_single;  // of any token
  const char* kv_type = "auto";
};

class RealWeightsTest : public ::testing::TestWithParam<Limits> {};

TEST_P(RealWeightsTest, AgreesWithTransformers) {
  const char* path = std::getenv("LAPIDARY_GEMMA3_GGUF");
  if (path == nullptr || *path == '\0') GTEST_SKIP() << "LAPIDARY_GEMMA3_GGUF is not set";
  std::ifstream file("bench/quality/expected_270m.json");
  ASSERT_TRUE(file) << "run from the source root";
  const nlohmann::json recorded = nlohmann::json::parse(file);
  const auto expected = recorded.at("transformers_fp32").get<std::vector<double>>();

  const Limits limits = GetParam();
  absl::StatusOr<std::unique_ptr<GoldenGroup>> group = GoldenGroup::Create(
      path, {.tp = limits.tp, .compute = limits.compute, .kv_type = limits.kv_type});
  ASSERT_TRUE(group.ok()) << group.status();
  GoldenGroup::Sequence sequence;
  recorded.at("ids").get_to(sequence.ids);
  const int total = static_cast<int>(sequence.ids.size()) - 1;

  double sum = 0, squares = 0, log_prob = 0, worst = 0;
  int worst_at = 0;
  while (sequence.computed < total) {
    const int begin = sequence.computed;
    const int count = std::min(kChunk, total - begin);
    const absl::StatusOr<Logits> logits = (*group)->Step({&sequence}, {count});
    ASSERT_TRUE(logits.ok()) << logits.status();
    for (int i = 0; i < count; ++i) {
      const std::vector<float>& row = (*logits)[i];
      const float top = *std::max_element(row.begin(), row.end());
      double normaliser = 0;
      for (const float v : row) normaliser += std::exp(v - top);
      const double ours = row[sequence.ids[begin + i + 1]] - top - std::log(normaliser);
      const double difference = ours - expected[begin + i];
      ASSERT_TRUE(std::isfinite(difference)) << "token " << begin + i + 1;
      sum += difference;
      squares += difference * difference;
      log_prob += ours;
      if (std::abs(difference) > std::abs(worst)) {
        worst = difference;
        worst_at = begin + i + 1;
      }
    }
  }
  std::printf(
      "perplexity %.3f, mean difference %+.5f, root mean square %.5f, largest %+.5f at token "
      "%d, arithmetic %s\n",
      std::exp(-log_prob / total), sum / total, std::sqrt(squares / total), worst, worst_at,
      (*group)->runner(0).resolved_arith().c_str());
  EXPECT_LE(std::abs(sum / total), limits.max_mean);
  EXPECT_LE(std::abs(worst), limits.max_single) << "token " << worst_at;
}

std::string Name(const ::testing::TestParamInfo<Limits>& info) {
  const char* const names[] = {"fp32", "bf16", "int8"};
  return std::string(names[static_cast<int>(info.param.compute)]) + "_tp" +
         std::to_string(info.param.tp) +
         (std::string(info.param.kv_type) == "int8" ? "_int8_pages" : "");
}

// The project's promises: every token within 1e-3 in fp32; on average within 0.003 nat in bf16 and
// 0.01 in int8. Single tokens may move more there: transformers in bf16 and llama.cpp (int8) differ
// from fp32 by up to 0.18 and 0.51 on this page. int8 pages in fp32 compute: half the promise for
// int8 (keys that are not balanced miss it by twice: worker/kv_choice.h).
constexpr Limits kAll[] = {
    {ComputeType::kFp32, 1, 1e-3, 1e-3},         {ComputeType::kBf16, 1, 0.003, 0.3},
    {ComputeType::kInt8, 1, 0.01, 0.7},          {ComputeType::kInt8, 2, 0.01, 0.7},
    {ComputeType::kFp32, 1, 0.005, 0.5, "int8"}, {ComputeType::kInt8, 2, 0.01, 0.7, "int8"}};
INSTANTIATE_TEST_SUITE_P(All, RealWeightsTest, ::testing::ValuesIn(kAll), Name);

}  // namespace
}  // namespace lapidary
