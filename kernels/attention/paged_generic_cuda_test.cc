// The generic kernel against attention in double: attention_world_test_support.h has the references
// and where the tolerances come from.
#include <cstring>

#include "kernels/attention/attention_world_test_support.h"

namespace lapidary {
namespace {

std::vector<__nv_bfloat16> Generic(const AttentionWorld& world,
                                   const std::vector<AttentionRun>& runs,
                                   const std::vector<int32_t>& spans) {
  GpuAttentionParams p = world.Params();
  const DeviceArray<__nv_bfloat16> out(world.tokens() * world.width());
  const DeviceArray<AttentionRun> device_runs(runs);
  const DeviceArray<int32_t> device_spans(spans);
  p.out = out.data();
  p.spans = spans.empty() ? nullptr : device_spans.data();
  EXPECT_EQ(LaunchPagedGeneric(p, device_runs.data(), static_cast<int>(runs.size()), world.tokens(),
                               nullptr),
            cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return out.Get();
}

class PagedGenericShapeTest : public testing::TestWithParam<GpuKvLayout> {};

// Prompts, a later chunk and single tokens in one batch, in any order, with padding.
TEST_P(PagedGenericShapeTest, MatchesTheFormula) {
  for (const int window : {0, 17}) {
    AttentionWorld world(
        {.layout = GetParam(), .groups = {2, 0, 3}, .lengths = {1, 17, 70, 40}, .window = window});
    const std::vector<AttentionRun> runs{world.Run(2, 45, 25),
                                         {.token = 1, .len = 0},
                                         world.Run(0, 0, 1),
                                         world.Run(3, 39, 1),
                                         world.Run(1, 0, 17)};
    world.ForgetBehind(2, 45);
    world.ForgetBehind(3, 39);
    SCOPED_TRACE(testing::Message() << world.config);
    world.ExpectRows(runs, {}, Generic(world, runs, {}));
  }
}

std::vector<GpuKvLayout> Layouts() {
  std::vector<GpuKvLayout> layouts = TunedLayouts();
  for (const GpuKvType type : {GpuKvType::kBf16, GpuKvType::kE4m3}) {
    for (const int d : {2, 6, 40, 72, 80, 96, 160, 320, 1024}) {
      layouts.push_back({type, KvFormat::kSplit, d, 0});
    }
    for (const auto& [d, pairs] :
         {std::pair{32, 4}, {72, 20}, {80, 0}, {96, 48}, {256, 20}, {512, 72}}) {
      layouts.push_back({type, KvFormat::kFolded, d, pairs});
    }
  }
  return layouts;
}
INSTANTIATE_TEST_SUITE_P(Shapes, PagedGenericShapeTest, testing::ValuesIn(Layouts()));

TEST(PagedGenericTest, SpansSeeTheirEndAndTheWindowStillHolds) {
  for (const int window : {0, 24}) {
    const AttentionWorld world({.layout = {GpuKvType::kBf16, KvFormat::kSplit, 80, 0},
                                .groups = {2},
                                .lengths = {90},
                                .window = window});
    std::vector<int32_t> spans(2 * world.tokens(), 0);
    for (const auto& [begin, end] : {std::pair{2, 5}, {14, 18}, {18, 19}, {30, 77}}) {
      for (int i = begin; i < end; ++i) spans[2 * i] = begin, spans[2 * i + 1] = end;
    }
    const std::vector<AttentionRun> runs{world.Run(0, 0, 30), world.Run(0, 30, 60)};
    world.ExpectRows(runs, spans, Generic(world, runs, spans));
  }
}

TEST(PagedGenericTest, ManyRunsAndARowsBitsDependOnItAlone) {
  const AttentionWorld world(
      {.layout = {GpuKvType::kE4m3, KvFormat::kSplit, 40, 0}, .groups = {3}, .lengths = {60, 50}});
  std::vector<AttentionRun> runs(40);  // padding, more than a warp looks at at once
  for (int i = 0; i < 50; ++i) runs.push_back(world.Run(1, i, 1));
  const std::vector<__nv_bfloat16> out = Generic(world, runs, {});
  world.ExpectRows(runs, {}, out);
  const std::vector<__nv_bfloat16> again =
      Generic(world, {world.Run(0, 0, 60), world.Run(1, 7, 43)}, {});
  const int64_t first = (60 + 7) * world.width();
  EXPECT_EQ(0, memcmp(&out[first], &again[first], 43 * world.width() * sizeof out[0]));
}

TEST(PagedGenericTest, BadArgumentsAreRefusedAndNoTokensAreFine) {
  const AttentionWorld world(
      {.layout = {GpuKvType::kBf16, KvFormat::kSplit, 64, 0}, .groups = {2}, .lengths = {5}});
  const GpuAttentionParams good = world.Params();
  const auto launch = [&](const GpuAttentionParams& p) {
    return LaunchPagedGeneric(p, nullptr, 0, 0, nullptr);
  };
  EXPECT_EQ(launch(good), cudaSuccess);
  for (const int d : {0, 63, 1026}) {
    GpuAttentionParams bad = good;
    bad.layout.head_dim = d;
    EXPECT_EQ(launch(bad), cudaErrorInvalidValue);
  }
  GpuAttentionParams bad = good;
  bad.q_heads = 3;  // none of whose kv heads serves the last
  EXPECT_EQ(launch(bad), cudaErrorInvalidValue);
  bad = good;
  bad.layout.format = KvFormat::kSingle;
  EXPECT_EQ(launch(bad), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
