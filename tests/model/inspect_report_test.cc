// The report and the bytes behind it.
#include "model/inspect_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/gemm/packed_weight.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "model/weight_bytes.h"
#include "tests/model/checkpoint_files.h"

namespace lapidary {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;

TEST(InspectReport, OfAConfigAlone) {
  const auto report = InspectReport("tests/golden/configs/gemma-4-e2b.json");
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report, HasSubstr("Gemma 4 E2B (gemma4)"));
  EXPECT_THAT(*report, ContainsRegex("15-18 +sliding +8 +1 +256 +512 +theta 10000, 256 of 256 +of "
                                     "layer 13 +12288\n"));
  EXPECT_THAT(*report, ContainsRegex("19 +full +8 +1 +512 +- +theta 1e\\+06, 128 of 512 +of layer "
                                     "14 +12288\n"));
  EXPECT_THAT(*report, ContainsRegex("total +4,628,569,379\n"));
  EXPECT_THAT(*report, ContainsRegex("12 sliding and 3 full layers"));
  EXPECT_THAT(*report, ContainsRegex("bf16 +12,288 +6,144 +54.00 MiB"));  // 512 of 8,192 slide
  EXPECT_THAT(*report, ContainsRegex("int8 +6,240 +3,096 "));
  EXPECT_THAT(*report, Not(HasSubstr("Stored")));
  EXPECT_THAT(*report, ContainsRegex("TP +rank +q heads +kv heads +MLP +vocabulary +KV bytes/token "
                                     "+fp32 +bf16"));
  EXPECT_THAT(*report, ContainsRegex("\n +1 +0 +8/8 +1/1 +6144-12288/6144-12288 +262144 "
                                     "+12,288/6,144 +9,119,036,416 +4,560,090,112 +4.25 GiB\n"));
  EXPECT_THAT(*report, ContainsRegex("\n +8 +7 +1/1 +1/1 +768-1536/768-1536 +32768 +12,288/6,144 "
                                     "+1,334,932,480 +668,038,144 +637.09 MiB\n"));
}

TEST(InspectReport, OfAQuantisedFile) {
  const TempFolder folder;
  const auto report = InspectReport(folder.Write("model.gguf", TinyGemma3Gguf()));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report, ContainsRegex("TP +rank.*fp32 +bf16 +int8"));
  EXPECT_THAT(*report, ContainsRegex("Q5_0 +24 "));
  EXPECT_THAT(*report, HasSubstr("TP 8: not possible: layer 0 has 4 query heads"));
}

TEST(InspectReport, ListsWhatIsNotUsed) {
  const auto report = InspectReport("tests/golden/models/ple-gpu");
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report, HasSubstr("model.vision_tower: "));
  EXPECT_THAT(*report, HasSubstr("K and V of layers that share another's: 12"));
}

TEST(InspectReport, OfNothing) {
  EXPECT_EQ(InspectReport("tests/golden/configs/absent").status().code(),
            absl::StatusCode::kNotFound);
}

// The sizes that model/weight_bytes.h documents are those of the packed weights.
TEST(PackedWeightBytes, CellsAreThePanelsBlocks) {
  const auto cell = [](WeightFormat format) {
    return Info(format).block_bytes * (kBlockK / Info(format).block_k);
  };
  EXPECT_EQ(cell(WeightFormat::kFp32), 4096);
  EXPECT_EQ(cell(WeightFormat::kBf16), 2048);
  EXPECT_EQ(cell(WeightFormat::kQ8), 1088);
  EXPECT_EQ(cell(WeightFormat::kQ8Block16), 1152);
  EXPECT_EQ(cell(WeightFormat::kQ4), 576);
  EXPECT_EQ(cell(WeightFormat::kQ4Min), 640);
  EXPECT_EQ(cell(WeightFormat::kQ5), 704);
  EXPECT_EQ(cell(WeightFormat::kQ5Min), 768);
}

// One layer, counted by hand.
TEST(PackedWeightBytes, OfATinyModel) {
  ModelSpec spec;
  spec.hidden = 40;  // 2 blocks of inputs, 2 panels as outputs
  spec.vocab = 70;   // 3 panels
  spec.layers = {{.q_heads = 4, .kv_heads = 1, .head_dim = 12, .mlp_width = 50}};
  const auto plan = PlanShards(spec, 1);
  ASSERT_TRUE(plan.ok());
  const int64_t cells = 3 * 2     // embedding 70 x 40
                        + 3 * 2   // qkv: 48 + 12 + 12 rows in 3 panels
                        + 2 * 2   // output 40 x 48
                        + 4 * 2   // gate_up: 100 rows in 4 panels
                        + 2 * 2;  // down 40 x 50
  const int64_t vectors = 4 * (40 + 4 * 40 + 2 * 12);
  EXPECT_EQ(PackedWeightBytes(spec, plan->ranks[0], nullptr, ComputeType::kFp32),
            cells * 4096 + vectors);
  EXPECT_EQ(PackedWeightBytes(spec, plan->ranks[0], nullptr, ComputeType::kBf16),
            cells * 2048 + vectors);
}

// Experts and quantised parts: a rank's share shrinks with the ranks, what is whole does not.
TEST(PackedWeightBytes, OfAQuantisedFileByFormat) {
  for (const bool split : {false, true}) {
    const TempFolder folder;
    const auto checkpoint = Checkpoint::Open(folder.Write("model.gguf", TinyGemma4Gguf(split)));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const ModelSpec& spec = (*checkpoint)->spec();
    const auto plan = PlanShards(spec, 1);
    ASSERT_TRUE(plan.ok());
    // Hidden 256 is 8 blocks or panels.
    const int64_t sliding = (8 + 4 + 4) * 8 * 768 + 8 * 8 * 768 + 16 * 8 * 768 + 8 * 8 * 768;
    const int64_t full = (8 + 2) * 8 * 640 + 8 * 8 * 640 + 16 * 8 * 640 + 8 * 8 * 640;
    const int64_t experts = 3 * (2 * 8 * 576 + 8 * 1 * 1088);
    const int64_t router = 1 * 8 * 4096;
    const int64_t vectors = 4 * ((4 + 3) * 256 + 2 * 32 + 256 + 3);
    const int64_t want = 2 * 8 * 1152 + 4 * 256  // embedding (Q6_K) and final norm
                         + 2 * sliding + 2 * full + 4 * (experts + router + vectors);
    EXPECT_EQ(PackedWeightBytes(spec, plan->ranks[0], checkpoint->get(), ComputeType::kInt8), want);
  }
}

}  // namespace
}  // namespace lapidary
