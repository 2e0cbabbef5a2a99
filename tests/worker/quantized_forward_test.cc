// Quantised checkpoints through the whole forward pass, one rank and several.
#include <cmath>
#include <string>

#include "gtest/gtest.h"
#include "tests/worker/forward_harness.h"
#include "tests/worker/quantized_toy.h"
#include "tests/worker/toy_model.h"
#include "worker/cpu_backend_matrix.h"
#include "worker/weights.h"

namespace lapidary {
namespace {

RunnerOptions Options(ComputeType compute) {
  RunnerOptions options;
  options.compute = compute;
  options.threads = 2;
  options.max_step_tokens = 64;
  options.max_logits_rows = 64;
  return options;
}

std::vector<TokenId> Ids(int count) {
  std::vector<TokenId> ids;
  for (int i = 0; i < count; ++i) ids.push_back((i * 13 + 5) % 32);
  return ids;
}

class QuantizedTest : public testing::TestWithParam<ModelSpec> {};
INSTANTIATE_TEST_SUITE_P(Toys, QuantizedTest,
                         testing::Values(WidenedToy(ToyA(), 16), WidenedToy(ToyB(), 16),
                                         WidenedToy(ToyG3(), 12)),
                         [](const auto& info) { return std::string(1, "ABG"[info.index]); });

double MeanAbsDifference(const std::vector<std::vector<float>>& a,
                         const std::vector<std::vector<float>>& b) {
  double total = 0;
  int64_t count = 0;
  for (size_t t = 0; t < a.size(); ++t) {
    const auto pa = LogSoftmax(a[t]), pb = LogSoftmax(b[t]);
    for (size_t i = 0; i < pa.size(); ++i, ++count) total += std::abs(pa[i] - pb[i]);
  }
  return total / static_cast<double>(count);
}

TEST_P(QuantizedTest, RanksAgreeInFp32) {
  const auto checkpoint = QuantizedToy(GetParam());
  ForwardHarness one(*checkpoint, 1, Options(ComputeType::kFp32));
  ForwardHarness two(*checkpoint, 2, Options(ComputeType::kFp32));
  EXPECT_LT(MeanAbsDifference(one.Whole(Ids(50)), two.Whole(Ids(50))), 2e-5);
}

TEST_P(QuantizedTest, Int8StaysNearFp32AndIsTheSameHoweverCut) {
  const auto checkpoint = QuantizedToy(GetParam());
  ForwardHarness exact(*checkpoint, 1, Options(ComputeType::kFp32));
  ForwardHarness int8(*checkpoint, 1, Options(ComputeType::kInt8));
  const auto expected = exact.Whole(Ids(50)), got = int8.Whole(Ids(50));
  // Each product errs by about 1 % of its size (0.5 % quantised activations, bf16 keys and values);
  // a handful of layers with logits of size 5 leaves 0.03 to 0.06. Wrong codes or scales give 1 and
  // more.
  const double difference = MeanAbsDifference(expected, got);
  EXPECT_LT(difference, 0.15);
  EXPECT_GT(difference, 1e-5);
  int8.Start({Ids(50), Ids(20)});
  int8.Step({{0, 17}});
  int8.Step({{1, 20}, {0, 1}});
  const auto rest = int8.Step({{0, 32}});
  for (int i = 0; i < 32; ++i) EXPECT_TRUE(rest[i] == got[18 + i]) << i;
  ForwardHarness two(*checkpoint, 2, Options(ComputeType::kInt8));
  EXPECT_LT(MeanAbsDifference(expected, two.Whole(Ids(50))), 0.15);
}

TEST_P(QuantizedTest, BytesAreWhatPlanningSays) {
  const auto checkpoint = QuantizedToy(GetParam());
  for (const ComputeType compute : {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8}) {
    for (const int ranks : {1, 2, 4}) {
      ForwardHarness harness(*checkpoint, ranks, Options(compute));
      const auto plan = PlanShards(checkpoint->spec(), ranks);
      for (int r = 0; r < ranks; ++r) {
        const auto bytes = CpuWeightsBytes(*checkpoint, plan->ranks[r], compute);
        ASSERT_TRUE(bytes.ok()) << bytes.status();
        EXPECT_EQ(*bytes, harness.runner(r).weights_bytes());
      }
    }
  }
}

}  // namespace
}  // namespace lapidary
