// Page formats and element types through whole workers' forward passes: what a choice means for
// each layer, and that no bit depends on how a batch is cut, whatever the pages hold.
#include "worker/kv_choice.h"

#include <array>
#include <cmath>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "model/config_reader.h"
#include "model/shard_plan.h"
#include "model/weight_bytes.h"
#include "tests/worker/forward_harness.h"
#include "tests/worker/toy_model.h"

namespace lapidary {
namespace {

RunnerOptions Options(ComputeType compute, const std::string& format, const std::string& type) {
  RunnerOptions options;
  options.compute = compute;
  options.kv_format = format;
  options.kv_type = type;
  options.threads = 2;
  options.max_step_tokens = 64;
  options.max_logits_rows = 64;
  return options;
}

std::vector<TokenId> Ids(int count, int step) {
  std::vector<TokenId> ids;
  for (int i = 0; i < count; ++i) ids.push_back((i * step + 5) % 32);
  return ids;
}

TEST(KvChoiceTest, Words) {
  const auto automatic = ChooseKv("auto", "auto", ComputeType::kFp32);
  ASSERT_TRUE(automatic.ok());
  EXPECT_EQ(automatic->type, KvType::kFp32);
  EXPECT_EQ(automatic->format, KvFormat::kFolded);
  EXPECT_EQ(ChooseKv("", "", ComputeType::kInt8)->type, KvType::kBf16);
  EXPECT_EQ(ChooseKv("split", "int8", ComputeType::kFp32)->type, KvType::kInt8);
  EXPECT_EQ(ChooseKv("split", "auto", ComputeType::kBf16)->format, KvFormat::kSplit);
  EXPECT_EQ(ChooseKv("single", "auto", ComputeType::kBf16)->format, KvFormat::kSingle);
  for (const auto& [format, type] :
       {std::pair{"folder", "auto"}, std::pair{"auto", "int4"}, std::pair{"Split", "int8"}}) {
    const auto bad = ChooseKv(format, type, ComputeType::kBf16);
    EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument) << format << " " << type;
  }
}

TEST(KvChoiceTest, OnlyGlobalLayersWhoseKeysAreValuesAreFolded) {
  const auto layouts = [](const ModelSpec& spec) {
    const auto plan = PlanShards(spec, 1);
    return PlaceKv(DescribeWeights(spec, plan->ranks[0]).layers,
                   {KvFormat::kFolded, KvType::kBf16});
  };
  ModelSpec b = ToyB();  // SSF, K = V
  const auto of_b = layouts(b);
  EXPECT_EQ(of_b[0].format, KvFormat::kSplit);
  EXPECT_EQ(of_b[2].format, KvFormat::kFolded);
  EXPECT_EQ(of_b[2].rotated_pairs, b.layers[2].rope.rotated_pairs);
  for (const KvLayout& layout : layouts(ToyA())) EXPECT_EQ(layout.format, KvFormat::kSplit);
  // Another layer reads them: it would need the owner's w_k.
  b.layers.push_back(b.layers[2]);
  EXPECT_EQ(layouts(b)[2].format, KvFormat::kSplit);
}

TEST(KvChoiceTest, PageBytesFollow) {
  const auto checkpoint = FillToy(ToyB());
  // Head 16, 2 pairs: split 16 + 32 columns, folded 4 keys + 12 plain and 2 of 16 = 64, single 64.
  const auto bytes = [&](const char* format, const char* type) {
    ForwardHarness harness(*checkpoint, 1, Options(ComputeType::kBf16, format, type));
    return harness.runner(0).page_bytes(KvFamily::kGlobal);
  };
  EXPECT_EQ(bytes("split", "auto"), 16 * (16 + 32) * 2);
  EXPECT_EQ(bytes("folded", "auto"), 16 * (4 + 64) * 2);
  EXPECT_EQ(bytes("single", "auto"), 16 * 64 * 2);
  EXPECT_EQ(bytes("split", "int8"), 16 * (16 + 32) + 128);
  EXPECT_EQ(bytes("folded", "int8"), 16 * (4 + 64) + 128);
  EXPECT_EQ(bytes("single", "int8"), 16 * 64 + 64);
}

TEST(KvChoiceTest, PagesHoldWhatInspectSays) {
  for (const char* name : {"31b", "26b-a4b", "12b", "e4b", "e2b"}) {
    const auto config =
        ReadModelConfig(std::string("tests/golden/configs/gemma-4-") + name + ".json");
    ASSERT_TRUE(config.ok()) << config.status();
    const ModelSpec& spec = config->spec;
    for (const int ranks : {1, 2}) {
      const auto plan = PlanShards(spec, ranks);
      ASSERT_TRUE(plan.ok()) << plan.status();
      const std::vector<LayerWeights> layers = DescribeWeights(spec, plan->ranks[0]).layers;
      for (const KvType type : {KvType::kFp32, KvType::kBf16, KvType::kInt8}) {
        for (const KvFormat format : {KvFormat::kSplit, KvFormat::kFolded, KvFormat::kSingle}) {
          const std::vector<KvLayout> layouts = PlaceKv(layers, {format, type});
          std::array<int64_t, kKvFamilies> bytes = {};
          for (const LayerWeights& layer : layers) {
            if (!layer.owns_kv()) continue;
            bytes[static_cast<int>(layer.spec.kind)] +=
                layer.kv_heads * layouts[layer.index].head_bytes();
          }
          for (const KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
            EXPECT_EQ(bytes[static_cast<int>(family)],
                      kPageTokens * KvBytesPerToken(spec, plan->ranks[0], family, {format, type}))
                << name << " " << ranks << " ranks, format " << static_cast<int>(format)
                << ", type " << static_cast<int>(type);
          }
        }
      }
    }
  }
}

TEST(KvChoiceTest, KeysAreBalancedByPairs) {
  const RopeSpec rope{.theta = 1e6, .rotated_pairs = 2};
  const std::vector<float> norm = {3, 1, 2, -5, 4, 7, 0, 6};  // head 8: 0, 1, 4 and 5 turn
  const KvLayout split{.type = KvType::kInt8, .head_dim = 8};
  const KvLayout folded{
      .type = KvType::kInt8, .head_dim = 8, .format = KvFormat::kFolded, .rotated_pairs = 2};
  KvLayout single = folded, bf16 = split;
  single.format = KvFormat::kSingle;
  bf16.type = KvType::kBf16;
  const float root = std::sqrt(12.5f);  // of (9 + 16) / 2
  const auto of_split = KeyBalance(split, rope, norm);
  ASSERT_EQ(of_split.size(), 8u);
  EXPECT_FLOAT_EQ(of_split[0], root);
  EXPECT_EQ(of_split[0], of_split[4]);
  EXPECT_FLOAT_EQ(of_split[1], 5);  // of (1 + 49) / 2
  EXPECT_EQ(of_split[1], of_split[5]);
  EXPECT_EQ(of_split[2], 2);
  EXPECT_EQ(of_split[3], 5);
  EXPECT_EQ(of_split[6], 1);  // nothing to divide by
  EXPECT_EQ(of_split[7], 6);
  const auto of_folded = KeyBalance(folded, rope, norm);
  EXPECT_EQ(of_folded,
            (std::vector<float>{of_split[0], of_split[1], 1, 1, of_split[0], of_split[1], 1, 1}));
  EXPECT_TRUE(KeyBalance(single, rope, norm).empty());
  EXPECT_TRUE(KeyBalance(bf16, rope, norm).empty());
  EXPECT_TRUE(KeyBalance(split, rope, {}).empty());
}

class KvTest : public testing::TestWithParam<std::tuple<std::string, std::string, ComputeType>> {};
INSTANTIATE_TEST_SUITE_P(All, KvTest,
                         testing::Combine(testing::Values("split", "folded", "single"),
                                          testing::Values("auto", "int8"),
                                          testing::Values(ComputeType::kFp32, ComputeType::kBf16)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param) +
                                  (std::get<2>(info.param) == ComputeType::kFp32 ? "_fp32"
                                                                                 : "_bf16");
                         });

TEST_P(KvTest, CuttingAndCompanyChangeNoBit) {
  const auto& [format, type, compute] = GetParam();
  for (const ModelSpec& spec : {ToyB(), ToyA()}) {
    const auto checkpoint = FillToy(spec);
    for (const int ranks : {1, 2}) {
      ForwardHarness harness(*checkpoint, ranks, Options(compute, format, type));
      const auto a = Ids(60, 13), b = Ids(41, 7);
      const auto alone_a = harness.Whole(a), alone_b = harness.Whole(b);
      harness.Start({b, a});
      int done_a = 0, done_b = 0;
      for (const auto& [more_b, more_a] : {std::pair{1, 17}, std::pair{9, 1}, std::pair{0, 5},
                                           std::pair{30, 20}, std::pair{1, 17}}) {
        std::vector<Chunk> chunks;
        if (more_b > 0) chunks.push_back({0, more_b});
        chunks.push_back({1, more_a});
        const auto rows = harness.Step(chunks);
        for (int i = 0; i < more_b; ++i) EXPECT_TRUE(rows[i] == alone_b[done_b + i]);
        for (int i = 0; i < more_a; ++i) EXPECT_TRUE(rows[more_b + i] == alone_a[done_a + i]);
        done_b += more_b;
        done_a += more_a;
      }
      EXPECT_EQ(done_a, 60);
      EXPECT_EQ(done_b, 41);
    }
  }
}

// Against split pages of the compute's own type, so that what differs is the pages alone. The mean
// over all log-probabilities; bounds: docs/numerics.md. A wrong column, scale or angle gives 0.5
// and more.
TEST_P(KvTest, StaysNearSplitPages) {
  const auto& [format, type, compute] = GetParam();
  const bool fp32_pages = compute == ComputeType::kFp32 && type == "auto";
  const double bound = fp32_pages ? 2e-5 : type == "int8" ? 0.12 : 0.06;
  const auto checkpoint = FillToy(ToyB());
  const auto ids = Ids(60, 13);
  for (const int ranks : {1, 2}) {
    // The arithmetic is pinned: "auto" is timed, and may differ from load to load.
    RunnerOptions split = Options(compute, "split", "auto");
    split.arith = ForwardHarness(*checkpoint, 1, split).runner(0).resolved_arith();
    RunnerOptions options = Options(compute, format, type);
    options.arith = split.arith;
    ForwardHarness exact(*checkpoint, ranks, split);
    ForwardHarness other(*checkpoint, ranks, options);
    const auto expected = exact.Whole(ids), got = other.Whole(ids);
    double total = 0;
    for (size_t t = 0; t < ids.size(); ++t) {
      const auto p = LogSoftmax(expected[t]), q = LogSoftmax(got[t]);
      for (size_t i = 0; i < p.size(); ++i) total += std::abs(p[i] - q[i]) / (60.0 * 32.0);
    }
    EXPECT_LT(total, bound) << ranks;
    EXPECT_EQ(total == 0, type == "auto" && format == "split") << ranks;
  }
}

}  // namespace
}  // namespace lapidary
