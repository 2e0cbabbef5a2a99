// The decode kernel against attention in double: attention_world_test_support.h has the references
// and where the tolerances come from.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "kernels/attention/attention_world_test_support.h"
#include "kernels/attention/paged_attention_plan.h"
#ifdef LAPIDARY_EMULATION
#include "kernels/simt/report.h"
#endif

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
  return out.Get();
}

// The last token of every sequence.
std::vector<AttentionRun> LastTokens(const AttentionWorld& world) {
  std::vector<AttentionRun> runs;
  for (size_t i = 0; i < world.config.lengths.size(); ++i) {
    runs.push_back(world.Run(static_cast<int>(i), world.config.lengths[i] - 1, 1));
  }
  return runs;
}

// The two ways the kernel is built: with bulk copies and without.
std::vector<Chip> DecodeChips() {
  if (!Emulated()) return ChipsToTest();
  std::vector<Chip> chips;
  for (const Chip& chip : ChipsToTest()) {
    if (chip.compute_capability == 89 || chip.compute_capability == 90) chips.push_back(chip);
  }
  return chips;
}

std::string Trace(const AttentionWorld& world, const Chip& chip) {
  std::ostringstream text;
  text << world.config << " on sm_" << chip.compute_capability;
  return text.str();
}

class PagedDecodeShapeTest : public testing::TestWithParam<GpuKvLayout> {};
INSTANTIATE_TEST_SUITE_P(Shapes, PagedDecodeShapeTest, testing::ValuesIn(TunedLayouts()));

// Every instance: shapes, eights of heads, ways of copying.
TEST_P(PagedDecodeShapeTest, MatchesTheFormula) {
  for (const std::vector<int>& groups : {std::vector<int>{8}, {2, 1}, {9, 3}}) {
    const AttentionWorld world(
        {.layout = GetParam(), .groups = groups, .lengths = {1, 15, 16, 17, 75}});
    for (const Chip& chip : DecodeChips()) {
      SCOPED_TRACE(Trace(world, chip));
      const std::vector<AttentionRun> runs = LastTokens(world);
      world.ExpectRows(runs, {}, Decode(world, runs, 1, chip));
    }
  }
}

// Windows and contexts one token before, at and behind every edge. What lies behind the window is
// garbage, what lies behind the last token has never been written.
TEST_P(PagedDecodeShapeTest, SeesItsWindowAndNothingElse) {
  for (const int window : {1, 16, 17, 40}) {
    const std::vector<int> lengths{1,           window + 1,  window + 7,
                                   window + 15, window + 16, std::max(window - 1, 1),
                                   window,      window + 24};
    AttentionWorld world(
        {.layout = GetParam(), .groups = {2}, .lengths = lengths, .window = window});
    for (size_t i = 0; i < lengths.size(); ++i) {
      world.ForgetBehind(static_cast<int>(i), lengths[i] - 1);
    }
    for (const Chip& chip : DecodeChips()) {
      SCOPED_TRACE(Trace(world, chip));
      const std::vector<AttentionRun> runs = LastTokens(world);
      world.ExpectRows(runs, {}, Decode(world, runs, 1, chip), false);
      world.ExpectRows(runs, {}, Decode(world, runs, 3, chip), false);
    }
  }
}

TEST(PagedDecodeTest, SplitsMayOutnumberPages) {
  for (const GpuKvLayout& layout : {GpuKvLayout{GpuKvType::kBf16, KvFormat::kSplit, 256, 0},
                                    GpuKvLayout{GpuKvType::kE4m3, KvFormat::kFolded, 512, 64},
                                    GpuKvLayout{GpuKvType::kBf16, KvFormat::kSplit, 64, 0}}) {
    const AttentionWorld world({.layout = layout, .groups = {4, 1}, .lengths = {3, 65, 200}});
    for (const Chip& chip : DecodeChips()) {
      for (const int splits : {1, 2, 3, 4, 5, 8, 64}) {
        SCOPED_TRACE(testing::Message() << Trace(world, chip) << ", splits " << splits);
        const std::vector<AttentionRun> runs = LastTokens(world);
        world.ExpectRows(runs, {}, Decode(world, runs, splits, chip), false);
      }
    }
  }
}

TEST(PagedDecodeTest, AnyGroupUpToSixteen) {
  const GpuKvLayout layout{GpuKvType::kBf16, KvFormat::kSplit, 64, 0};
  for (int group = 1; group <= 16; ++group) {
    const AttentionWorld world({.layout = layout, .groups = {group, 17 - group}, .lengths = {35}});
    for (const Chip& chip : DecodeChips()) {
      SCOPED_TRACE(Trace(world, chip));
      const std::vector<AttentionRun> runs = LastTokens(world);
      world.ExpectRows(runs, {}, Decode(world, runs, 1, chip));
      world.ExpectRows(runs, {}, Decode(world, runs, 2, chip));
    }
  }
}

// A rank that holds a kv head none of whose query heads it has.
TEST(PagedDecodeTest, AKvHeadWithoutQueryHeadsIsSkipped) {
  const GpuKvLayout layout{GpuKvType::kBf16, KvFormat::kSplit, 128, 0};
  const AttentionWorld world({.layout = layout, .groups = {3, 0, 2, 0}, .lengths = {100}});
  for (const Chip& chip : DecodeChips()) {
    SCOPED_TRACE(Trace(world, chip));
    const std::vector<AttentionRun> runs = LastTokens(world);
    world.ExpectRows(runs, {}, Decode(world, runs, 1, chip));
    world.ExpectRows(runs, {}, Decode(world, runs, 2, chip));
  }
}

// Scores of some 100: earlier sums shrink to nothing, late weights are tiny.
TEST(PagedDecodeTest, LargeScoresStayExact) {
  for (const GpuKvLayout& layout : {GpuKvLayout{GpuKvType::kBf16, KvFormat::kSplit, 256, 0},
                                    GpuKvLayout{GpuKvType::kE4m3, KvFormat::kSplit, 128, 0}}) {
    const AttentionWorld world(
        {.layout = layout, .groups = {8}, .lengths = {200}, .query_scale = 2});
    for (const Chip& chip : DecodeChips()) {
      SCOPED_TRACE(Trace(world, chip));
      const std::vector<AttentionRun> runs = LastTokens(world);
      world.ExpectRows(runs, {}, Decode(world, runs, 1, chip), false);
      world.ExpectRows(runs, {}, Decode(world, runs, 2, chip), false);
    }
  }
}

TEST(PagedDecodeTest, ALongContext) {
  const AttentionWorld world(
      {.layout = {GpuKvType::kBf16, KvFormat::kFolded, 512, 64}, .groups = {8}, .lengths = {1000}});
  for (const Chip& chip : DecodeChips()) {
    SCOPED_TRACE(Trace(world, chip));
    const std::vector<AttentionRun> runs = LastTokens(world);
    world.ExpectRows(runs, {}, Decode(world, runs, 5, chip));
  }
}

// Any token of a sequence may be the row, and a row's bits depend on nothing else in the batch.
TEST(PagedDecodeTest, ARowsBitsDependOnItAlone) {
  for (const GpuKvLayout& layout : {GpuKvLayout{GpuKvType::kBf16, KvFormat::kSplit, 128, 0},
                                    GpuKvLayout{GpuKvType::kE4m3, KvFormat::kFolded, 128, 16}}) {
    const AttentionWorld world({.layout = layout, .groups = {3, 9}, .lengths = {90, 200, 33}});
    const AttentionRun row = world.Run(1, 150, 1), padding{.token = 5, .len = 0};
    const int64_t first = row.token * world.width();
    for (const Chip& chip : DecodeChips()) {
      for (const int splits : {1, 3}) {
        SCOPED_TRACE(testing::Message() << Trace(world, chip) << ", splits " << splits);
        const std::vector<__nv_bfloat16> alone = Decode(world, {row}, splits, chip);
        const std::vector<AttentionRun> batch{
            world.Run(2, 32, 1), padding, world.Run(0, 7, 1), row, world.Run(1, 199, 1), padding};
        const std::vector<__nv_bfloat16> among = Decode(world, batch, splits, chip);
        EXPECT_EQ(0, memcmp(&alone[first], &among[first], world.width() * sizeof alone[0]));
        world.ExpectRows(batch, {}, among);  // padding wrote nothing
      }
    }
  }
}

TEST(PagedDecodeTest, OnlyPadding) {
  const AttentionWorld world(
      {.layout = {GpuKvType::kBf16, KvFormat::kSplit, 64, 0}, .groups = {2}, .lengths = {5}});
  for (const Chip& chip : DecodeChips()) {
    world.ExpectRows({}, {}, Decode(world, {{.token = -1, .table = -7}, {}}, 1, chip));
    world.ExpectRows({}, {}, Decode(world, {{.token = -1, .table = -7}, {}}, 4, chip));
  }
}

#ifdef LAPIDARY_EMULATION
// Bytes of global memory that a decode step moves, against the least it could: the rows of keys and
// values that are seen, once for each kv head, with their scales; queries and outputs.
TEST(PagedDecodeTest, ReadsEachPageOnceAndLittleElse) {
  struct Case {
    const char* name;
    GpuKvLayout layout;
    std::vector<int> groups;
    int length, window, splits;
  };
  const Case cases[] = {
      {"26B sliding", {GpuKvType::kBf16, KvFormat::kSplit, 256, 0}, {2, 2}, 1300, 1024, 1},
      {"26B sliding, 4 splits", {GpuKvType::kBf16, KvFormat::kSplit, 256, 0}, {2}, 1300, 1024, 4},
      {"26B sliding, e4m3", {GpuKvType::kE4m3, KvFormat::kSplit, 256, 0}, {2}, 1300, 1024, 1},
      {"26B global", {GpuKvType::kBf16, KvFormat::kFolded, 512, 64}, {8}, 900, 0, 1},
      {"12B global", {GpuKvType::kBf16, KvFormat::kFolded, 512, 64}, {16}, 900, 0, 1},
      {"26B global, e4m3", {GpuKvType::kE4m3, KvFormat::kFolded, 512, 64}, {8}, 900, 0, 2},
  };
  for (const Case& c : cases) {
    const AttentionWorld world(
        {.layout = c.layout, .groups = c.groups, .lengths = {c.length}, .window = c.window});
    for (const Chip& chip : DecodeChips()) {
      simt::ResetLaunchCounts();
      Decode(world, LastTokens(world), c.splits, chip);
      const simt::KernelCounts decode = simt::CountsOf("paged_decode");
      const simt::KernelCounts combine = simt::CountsOf("combine_splits");
      const int first = c.window > 0 ? c.length - c.window : 0;
      const int pages = (c.length - 1) / kPageTokens - first / kPageTokens + 1;
      const int64_t keys =
          int64_t{world.kv_heads()} * ((c.length - first) * int64_t{c.layout.row_bytes()} +
                                       pages * int64_t{c.layout.scale_bytes()});
      const int64_t least =
          keys + world.q_heads() * int64_t{c.layout.score_columns() + c.layout.head_dim} * 2;
      const int64_t moved =
          decode.bytes_read + decode.bytes_written + combine.bytes_read + combine.bytes_written;
      printf("%-22s sm_%d: %8ld bytes moved, %8ld at least (%.3f)\n", c.name,
             chip.compute_capability, static_cast<long>(moved), static_cast<long>(least),
             static_cast<double>(moved) / static_cast<double>(least));
      EXPECT_GE(decode.bytes_read, keys) << c.name;
      // What is known to come on top: the query by each split and by the warps that have different
      // pages of a step; each split's partial sums, written and read; and what all 128 threads of a
      // block read, one sector in truth: the run and, without bulk copies, the pages' ids.
      const int64_t ids = chip.has_bulk_copy() ? 0 : world.kv_heads() * 4 * 128 * int64_t{pages};
      const int64_t blocks = world.kv_heads() * c.splits + (c.splits > 1 ? world.q_heads() : 0);
      const int64_t runs = blocks * 128 * int64_t{sizeof(AttentionRun)};
      const int64_t partial =
          c.splits == 1 ? 0 : 2 * world.q_heads() * c.splits * (c.layout.head_dim * 4 + 8);
      const int64_t queries = world.q_heads() * int64_t{c.layout.score_columns()} * 2 *
                              (c.splits * DecodeStepPages(c.layout) - 1);
      EXPECT_LE(static_cast<double>(moved),
                1.02 * static_cast<double>(least + ids + runs + queries + partial))
          << c.name;
    }
  }
}
#endif

TEST(PagedDecodeTest, ThePlanDependsOnTheNumberOfRowsAlone) {
  GpuAttentionParams p;
  p.layout = {GpuKvType::kBf16, KvFormat::kSplit, 256, 0};
  p.q_heads = 16;
  p.kv_heads = 8;
  const Chip chip{.compute_capability = 90, .processors = 132, .shared_bytes = 227 << 10};
  const DecodePlan few = PlanDecode(p, 2, chip);
  EXPECT_EQ(few.splits, 16);
  EXPECT_EQ(few.workspace_bytes, 2 * 16 * 16 * (256 * 4 + 8));
  const DecodePlan many = PlanDecode(p, 64, chip);
  EXPECT_EQ(many.splits, 1);
  EXPECT_EQ(many.workspace_bytes, 0);
  EXPECT_EQ(PlanDecode(p, 0, chip).splits, 1);
}

TEST(PagedDecodeTest, BadArgumentsAreRefusedAndNoRowsAreFine) {
  const AttentionWorld world(
      {.layout = {GpuKvType::kBf16, KvFormat::kSplit, 64, 0}, .groups = {2}, .lengths = {5}});
  const Chip chip = ChipsToTest().back();
  const GpuAttentionParams good = world.Params();
  const DecodePlan one;
  const auto launch = [&](const GpuAttentionParams& p, const DecodePlan& plan) {
    return LaunchPagedDecode(p, nullptr, 0, plan, nullptr, chip, nullptr);
  };
  EXPECT_EQ(launch(good, one), cudaSuccess);
  GpuAttentionParams bad = good;
  bad.layout.head_dim = 80;
  EXPECT_FALSE(DecodeKernelTakes(bad.layout, 2, chip));
  EXPECT_EQ(launch(bad, one), cudaErrorInvalidValue);
  bad = good;
  bad.group_begin[1] = 17;
  EXPECT_FALSE(DecodeKernelTakes(bad.layout, 17, chip));
  EXPECT_EQ(launch(bad, one), cudaErrorInvalidValue);
  bad = good;
  bad.out_stride = 2 * 64 + 1;
  EXPECT_EQ(launch(bad, one), cudaErrorInvalidValue);
  bad = good;
  bad.kv_heads = 0;
  EXPECT_EQ(launch(bad, one), cudaErrorInvalidValue);
  EXPECT_EQ(launch(good, {.splits = 65}), cudaErrorInvalidValue);
  EXPECT_EQ(launch(good, {.splits = 2}), cudaErrorInvalidValue);  // no workspace
}

}  // namespace
}  // namespace lapidary
