// The decode kernel against attention in double: attention_world_test_support.h has the references
// and where the tolerances come from.
#include <cstring>

#include "kernels/attention/attention_world_test_support.h"

namespace lapidary {
namespace {

// Runs rows with the given number of splits; out starts as poison.
std::vector<__nv_bfloat16> Decode(const AttentionWorld& world,
                                  const std::vector<AttentionRun>& runs, int splits,
                                  const Chip& chip) {
  GpuAttentionParams p = world.Params();
  const DeviceArray<__nv_bfloat16> out(world.tokens() * world.width());
  const DeviceArray<AttentionRun> device_runs(runs);
  p.out = out.data();
  const int rows = static_cast<int>(runs.size());
  DecodePlan plan{.splits = splits};
  if (splits > 1) {
    plan.workspace_bytes = int64_t{rows} * p.q_heads * splits * (p.layout.head_dim * 4 + 8);
  }
  const DeviceArray<uint8_t> workspace(plan.workspace_bytes);
  EXPECT_TRUE(DecodeKernelTakes(p.layout, world.largest_group(), chip));
  EXPECT_EQ(LaunchPagedDecode(p, device_runs.data(), rows, plan, workspace.data(), chip, nullptr),
            cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return out.Download();
}

// The last token of every sequence.
std::vector<AttentionRun> LastTokens(const AttentionWorld& world) {
  std::vector<AttentionRun> runs;
  for (size_t i = 0; i < world.config.lengths.size(); ++i) {
    runs.push_back(world.Run(static_cast<int>(i), world.config.lengths[i] - 1, 1));
  }
  return runs;
}

class PagedDecodeShapeTest : public testing::TestWithParam<GpuKvLayout> {};

// Every instance: shapes, eights of heads, ways of copying. Contexts around page edges.
TEST_P(PagedDecodeShapeTest, MatchesTheFormula) {
  for (const std::vector<int>& groups : {std::vector<int>{8}, {2, 1}, {16}, {9, 3}}) {
    const AttentionWorld world({.layout = GetParam(), .groups = groups, .lengths = {1, 17, 75}});
    for (const Chip& chip : ChipsToTest()) {
      if (Emulated() && chip.compute_capability != 80 && chip.compute_capability != 90) continue;
      SCOPED_TRACE(testing::Message() << world.config << " sm_" << chip.compute_capability);
      const std::vector<AttentionRun> runs = LastTokens(world);
      world.ExpectRows(runs, {}, Decode(world, runs, 1, chip));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, PagedDecodeShapeTest, testing::ValuesIn(TunedLayouts()));

}  // namespace
}  // namespace lapidary
