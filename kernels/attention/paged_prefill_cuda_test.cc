// The prefill kernel against attention in double: attention_world_test_support.h has the references
// and where the tolerances come from.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "kernels/attention/attention_world_test_support.h"

namespace lapidary {
namespace {

// Runs as chunks of one batch; out starts as poison. `block_tokens` 0: what the plan says.
std::vector<__nv_bfloat16> Prefill(const AttentionWorld& world,
                                   const std::vector<AttentionRun>& runs,
                                   const std::vector<int32_t>& spans, const Chip& chip,
                                   int block_tokens = 0) {
  GpuAttentionParams p = world.Params();
  const DeviceArray<__nv_bfloat16> out(world.tokens() * world.width());
  const DeviceArray<AttentionRun> device_runs(runs);
  const DeviceArray<int32_t> device_spans(spans);
  std::vector<PrefillBlock> blocks;
  if (block_tokens == 0) {
    block_tokens = PrefillBlockTokens(p.layout, world.largest_group(), chip);
  }
  CutPrefill(runs, block_tokens, &blocks);
  const DeviceArray<PrefillBlock> device_blocks(blocks);
  p.out = out.data();
  p.spans = spans.empty() ? nullptr : device_spans.data();
  EXPECT_TRUE(PrefillKernelTakes(p.layout, chip));
  EXPECT_EQ(LaunchPagedPrefill(p, device_runs.data(), device_blocks.data(),
                               static_cast<int>(blocks.size()), chip, nullptr),
            cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return out.Get();
}

std::string Trace(const AttentionWorld& world, const Chip& chip) {
  std::ostringstream text;
  text << world.config << " on sm_" << chip.compute_capability;
  return text.str();
}

class PagedPrefillShapeTest : public testing::TestWithParam<GpuKvLayout> {};
INSTANTIATE_TEST_SUITE_P(Shapes, PagedPrefillShapeTest, testing::ValuesIn(TunedLayouts()));

// Every instance: whole prompts, a later chunk, single tokens.
TEST_P(PagedPrefillShapeTest, MatchesTheFormula) {
  const AttentionWorld world({.layout = GetParam(), .groups = {3, 1}, .lengths = {1, 17, 70, 40}});
  const std::vector<AttentionRun> runs{world.Run(0, 0, 1), world.Run(1, 0, 17),
                                       world.Run(2, 37, 33), world.Run(3, 39, 1)};
  for (const Chip& chip : ChipsToTest()) {
    SCOPED_TRACE(Trace(world, chip));
    world.ExpectRows(runs, {}, Prefill(world, runs, {}, chip));
  }
}

// Chunks that begin and end around page and window edges. What lies behind the window of a chunk's
// first token is garbage.
TEST_P(PagedPrefillShapeTest, SeesItsWindowAndNothingElse) {
  for (const int window : {1, 16, 17, 40}) {
    AttentionWorld world(
        {.layout = GetParam(), .groups = {2}, .lengths = {20, 57, 62, 90}, .window = window});
    const std::vector<AttentionRun> runs{world.Run(0, 0, 20), world.Run(1, 40, 17),
                                         world.Run(2, 55, 7), world.Run(3, 47, 43)};
    for (size_t i = 0; i < runs.size(); ++i) {
      world.ForgetBehind(static_cast<int>(i), runs[i].position);
    }
    for (const Chip& chip : ChipsToTest()) {
      SCOPED_TRACE(Trace(world, chip));
      world.ExpectRows(runs, {}, Prefill(world, runs, {}, chip), false);
    }
  }
}

// Spans [begin, end) of sequence 0 as the kernel takes them.
std::vector<int32_t> Spans(const AttentionWorld& world,
                           const std::vector<std::pair<int, int>>& spans) {
  std::vector<int32_t> by_token(2 * world.tokens(), 0);
  for (const auto& [begin, end] : spans) {
    for (int i = begin; i < end; ++i) {
      by_token[2 * i] = begin;
      by_token[2 * i + 1] = end;
    }
  }
  return by_token;
}

// Spans within a page, across pages and across blocks, one longer than the window, two that touch.
TEST(PagedPrefillTest, SpansSeeTheirEndAndTheWindowStillHolds) {
  for (const GpuKvLayout& layout : {GpuKvLayout{GpuKvType::kBf16, KvFormat::kSplit, 64, 0},
                                    GpuKvLayout{GpuKvType::kE4m3, KvFormat::kSplit, 256, 0},
                                    GpuKvLayout{GpuKvType::kBf16, KvFormat::kFolded, 512, 64}}) {
    for (const int window : {0, 24}) {
      if (layout.head_dim == 512 && window == 0) continue;  // slow under emulation
      const AttentionWorld world(
          {.layout = layout, .groups = {5, 1}, .lengths = {80}, .window = window});
      const std::vector<int32_t> spans =
          Spans(world, {{2, 5}, {14, 18}, {18, 19}, {30, 64}, {70, 80}});
      const std::vector<AttentionRun> runs{world.Run(0, 0, 80)};
      const std::vector<AttentionRun> chunks{world.Run(0, 0, 30), world.Run(0, 30, 38),
                                             world.Run(0, 68, 12)};
      for (const Chip& chip : ChipsToTest()) {
        SCOPED_TRACE(Trace(world, chip));
        const std::vector<__nv_bfloat16> out = Prefill(world, runs, spans, chip);
        world.ExpectRows(runs, spans, out);
        const std::vector<__nv_bfloat16> again = Prefill(world, chunks, spans, chip);
        EXPECT_EQ(0, memcmp(out.data(), again.data(), out.size() * sizeof out[0]));
      }
    }
  }
}

TEST(PagedPrefillTest, AnyGroup) {
  const GpuKvLayout layout{GpuKvType::kBf16, KvFormat::kSplit, 64, 0};
  for (const std::vector<int>& groups :
       {std::vector<int>{1}, {2, 3}, {5}, {7, 0, 1}, {16}, {33}, {150, 1}}) {
    const AttentionWorld world({.layout = layout, .groups = groups, .lengths = {21, 40}});
    const std::vector<AttentionRun> runs{world.Run(0, 0, 21), world.Run(1, 37, 3)};
    for (const Chip& chip : ChipsToTest()) {
      SCOPED_TRACE(Trace(world, chip));
      world.ExpectRows(runs, {}, Prefill(world, runs, {}, chip), groups[0] < 16);
    }
  }
}

// A row's bits depend on its sequence alone: not on how its prompt is cut into chunks and blocks,
// nor on what else is in the batch.
TEST(PagedPrefillTest, ARowsBitsDependOnItAlone) {
  for (const GpuKvLayout& layout : {GpuKvLayout{GpuKvType::kBf16, KvFormat::kSplit, 128, 0},
                                    GpuKvLayout{GpuKvType::kE4m3, KvFormat::kFolded, 128, 16}}) {
    for (const int window : {0, 50}) {
      const AttentionWorld world(
          {.layout = layout, .groups = {4, 2}, .lengths = {80, 33}, .window = window});
      const std::vector<AttentionRun> whole{world.Run(0, 0, 80)};
      const std::vector<AttentionRun> cut{world.Run(0, 63, 17),
                                          world.Run(1, 5, 20),
                                          {.token = 3, .len = 0},
                                          world.Run(0, 0, 13),
                                          world.Run(0, 13, 50)};
      for (const Chip& chip : ChipsToTest()) {
        SCOPED_TRACE(Trace(world, chip));
        const std::vector<__nv_bfloat16> out = Prefill(world, whole, {}, chip);
        world.ExpectRows(whole, {}, out);
        const std::vector<__nv_bfloat16> again = Prefill(world, cut, {}, chip, 19);
        EXPECT_EQ(0, memcmp(out.data(), again.data(), 80 * world.width() * sizeof out[0]));
      }
    }
  }
}

TEST(PagedPrefillTest, LargeScoresStayExact) {
  const AttentionWorld world({.layout = {GpuKvType::kBf16, KvFormat::kSplit, 256, 0},
                              .groups = {2},
                              .lengths = {150},
                              .query_scale = 2});
  const std::vector<AttentionRun> runs{world.Run(0, 100, 50)};
  for (const Chip& chip : ChipsToTest()) {
    SCOPED_TRACE(Trace(world, chip));
    world.ExpectRows(runs, {}, Prefill(world, runs, {}, chip), false);
  }
}

TEST(PagedPrefillTest, BlocksCoverEveryTokenOnceAndLongContextsComeFirst) {
  const std::vector<AttentionRun> runs{{.len = 20, .position = 0},
                                       {.len = 0},
                                       {.len = 1, .position = 500},
                                       {.len = 33, .position = 7}};
  for (const int block_tokens : {1, 8, 16, 100}) {
    std::vector<PrefillBlock> blocks{{.run = 9}};  // what was there goes
    CutPrefill(runs, block_tokens, &blocks);
    std::vector<std::vector<int>> seen;
    for (const AttentionRun& run : runs) seen.emplace_back(run.len, 0);
    int last = INT32_MAX;
    for (const PrefillBlock& b : blocks) {
      EXPECT_GT(b.count, 0);
      EXPECT_LE(b.count, block_tokens);
      for (int i = 0; i < b.count; ++i) ++seen.at(b.run).at(b.first + i);
      const int context = runs[b.run].position + b.first + b.count;
      EXPECT_LE(context, last);
      last = context;
    }
    for (const std::vector<int>& run : seen) {
      EXPECT_EQ(std::count(run.begin(), run.end(), 1), static_cast<int64_t>(run.size()));
    }
  }
}

TEST(PagedPrefillTest, BadArgumentsAreRefusedAndNoBlocksAreFine) {
  const AttentionWorld world(
      {.layout = {GpuKvType::kBf16, KvFormat::kSplit, 64, 0}, .groups = {2}, .lengths = {5}});
  const Chip chip = ChipsToTest().back();
  const GpuAttentionParams good = world.Params();
  const auto launch = [&](const GpuAttentionParams& p, int blocks, const Chip& on) {
    return LaunchPagedPrefill(p, nullptr, nullptr, blocks, on, nullptr);
  };
  EXPECT_EQ(launch(good, 0, chip), cudaSuccess);
  EXPECT_EQ(launch(good, -1, chip), cudaErrorInvalidValue);
  GpuAttentionParams bad = good;
  bad.layout.head_dim = 96;
  EXPECT_FALSE(PrefillKernelTakes(bad.layout, chip));
  EXPECT_EQ(launch(bad, 0, chip), cudaErrorInvalidValue);
  bad = good;
  bad.out_stride = 132;
  EXPECT_EQ(launch(bad, 0, chip), cudaErrorInvalidValue);
  const Chip small{.compute_capability = 75, .processors = 1, .shared_bytes = 64 << 10};
  EXPECT_FALSE(PrefillKernelTakes(good.layout, small));
  EXPECT_EQ(launch(good, 0, small), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
