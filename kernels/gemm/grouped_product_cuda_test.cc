#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "kernels/gemm/product_cuda_test_support.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "kernels/gemm/stream_product_plan.h"
#ifdef LAPIDARY_EMULATION
#include "kernels/simt/report.h"
#endif

namespace lapidary {
namespace {

struct Case {
  GpuNumber number = GpuNumber::kBf16;
  int64_t n = 0, k = 0;    // of an expert
  std::vector<int> slots;  // of each expert
  int tokens = 0;          // rows of x; 0: a row per slot, no row_of
  bool gated = false;
  int64_t y_stride = 0;  // 0: outputs
  int64_t spare = 0;     // how far max_slots lies above what there is

  int experts() const { return static_cast<int>(slots.size()); }
  int64_t used() const { return std::accumulate(slots.begin(), slots.end(), int64_t{0}); }
  int64_t outputs() const { return gated ? n / 2 : n; }
  int64_t stride() const { return y_stride > 0 ? y_stride : outputs(); }
};

// A case's numbers on the host.
struct Problem {
  explicit Problem(const Case& c)
      : w(MakeNumbers(c.number, c.experts() * c.n, c.k, 11)),
        x(MakeNumbers(c.number, c.tokens > 0 ? c.tokens : std::max<int64_t>(c.used(), 1), c.k,
                      12)) {
    begin.push_back(0);
    for (const int n : c.slots) begin.push_back(begin.back() + n);
    for (int64_t s = 0; c.tokens > 0 && s < c.used(); ++s) {
      row_of.push_back(static_cast<int32_t>((s * 7 + s / 5) % c.tokens));
    }
  }
  int64_t XRow(int64_t slot) const { return row_of.empty() ? slot : row_of[slot]; }

  Numbers w, x;
  std::vector<int32_t> begin, row_of;
};

// The bits of y [used + spare + 1, stride], poisoned before.
std::vector<uint16_t> Product(const Case& c, const Problem& problem, const GroupedPlan& plan,
                              const Chip& chip) {
  GroupedParams p;
  p.w = {.number = c.number, .tiled = true, .n = c.n, .k = c.k};
  const DeviceBytes w(MatrixBytes(problem.w, p.w, c.experts())), w_scale(problem.w.scale);
  const DeviceBytes x(Strided(problem.x, PaddedStride(problem.x))), x_scale(problem.x.scale);
  const DeviceBytes begin(problem.begin), row_of(problem.row_of);
  const int64_t rows = c.used() + c.spare + 1;
  const DeviceBytes y(std::vector<uint16_t>(rows * c.stride(), 0xffff));
  p.w.data = w.as();
  p.in = {.x = x.as(), .stride = PaddedStride(problem.x)};
  if (c.number == GpuNumber::kE4m3) {
    p.w.scale = w_scale.as<float>();
    p.in.scale = x_scale.as<float>();
  }
  p.experts = c.experts();
  p.begin = begin.as<int32_t>();
  p.row_of = problem.row_of.empty() ? nullptr : row_of.as<int32_t>();
  p.out = {.y = y.as(),
           .stride = c.stride(),
           .epilogue = c.gated ? ProductEpilogue::kGatedGelu : ProductEpilogue::kBf16};
  p.max_slots = c.used() + c.spare;
  cudaStream_t stream = nullptr;
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(LaunchGroupedProduct(p, plan, chip, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  return y.Read<uint16_t>();
}

bool UsesE4m3Sums(const Case& c, const GroupedPlan& plan, const Chip& chip) {
  return c.number == GpuNumber::kE4m3 && plan.token_tile > 32 &&
         (chip.compute_capability == 89 || chip.compute_capability >= 120);
}

void Check(const Case& c, const GroupedPlan& plan, const Chip& chip) {
  SCOPED_TRACE(testing::Message() << "n " << c.n << " k " << c.k << " slots " << c.used()
                                  << (c.gated ? " gated" : " bf16 out")
                                  << (c.number == GpuNumber::kE4m3 ? " e4m3" : " bf16")
                                  << " token_tile " << plan.token_tile << " row_tile "
                                  << plan.row_tile << (plan.wgmma ? " wgmma" : "") << " sm_"
                                  << chip.compute_capability);
  const Problem problem(c);
  const std::vector<uint16_t> y = Product(c, problem, plan, chip);
  const double unit = UsesE4m3Sums(c, plan, chip) ? 0x1p-13 : 0x1p-23;
  const int64_t written = std::min(c.stride(), (c.outputs() + 7) / 8 * 8);
  Comparison comparison;
  for (int e = 0; e <= c.experts(); ++e) {
    const bool there = e < c.experts();
    const int64_t begin = problem.begin[e];
    const int64_t end = there ? problem.begin[e + 1] : begin + c.spare + 1;
    for (int64_t s = begin; s < end; ++s) {
      for (int64_t o = 0; o < c.stride(); ++o) {
        const uint16_t bits = y[s * c.stride() + o];
        if (!there || o >= written) {
          ASSERT_EQ(bits, 0xffff) << "slot " << s << " column " << o;
          continue;
        }
        if (o >= c.outputs()) {
          ASSERT_EQ(bits, 0) << "slot " << s << " column " << o;
          continue;
        }
        const auto sum = [&](int64_t row) {
          return Sum(problem.w, e * c.n + row, problem.x, problem.XRow(s), unit);
        };
        const Expected expected = c.gated ? Gated(sum(GateRow(o)), sum(UpRow(o))) : sum(o);
        comparison.Add("y", s, o, Bf16Value(bits), RoundedToBf16(expected));
      }
    }
  }
}

GroupedPlan Tile(int token_tile) { return {token_tile, false, GroupedRowTile(token_tile)}; }

// Every variant that the chips have.
std::vector<std::pair<Chip, GroupedPlan>> Variants(GpuNumber number) {
  std::vector<std::pair<Chip, GroupedPlan>> variants;
  for (const Chip& chip : TestChips()) {
    variants.push_back({chip, {8, false, 16}});
    for (const int token_tile : {8, 16, 32, 64, 128}) variants.push_back({chip, Tile(token_tile)});
    if (chip.has_wgmma() && number == GpuNumber::kBf16) {
      variants.push_back({chip, {128, true, 128}});
    }
  }
  return variants;
}

class GroupedProductTest : public testing::TestWithParam<GpuNumber> {};

TEST_P(GroupedProductTest, EveryVariantFollowsTheReference) {
  const auto variants = Variants(GetParam());
  if (variants.empty()) GTEST_SKIP() << "no device";
  int i = 0;
  for (const auto& [chip, plan] : variants) {
    Case c{.number = GetParam(), .n = 80, .k = 150, .slots = {0, 3, 0, 0, 17, 8, 1, 0, 66, 0}};
    c.tokens = 23;
    c.gated = i % 2 == 0;
    c.y_stride = i % 3 == 0 ? 88 : 0;
    c.spare = i % 4 * 5;
    Check(c, plan, chip);
    // The other epilogue, rows that take no vector stores, more than a tile of tokens.
    c.gated = !c.gated;
    c.y_stride = c.outputs() + 3;
    c.slots = {0, 1, 130, 0};
    c.tokens = 0;
    Check(c, plan, chip);
    ++i;
  }
}

TEST_P(GroupedProductTest, AwkwardSizesFollowTheReference) {
  const auto variants = Variants(GetParam());
  if (variants.empty()) GTEST_SKIP() << "no device";
  size_t i = 0;
  for (const int64_t n : {1, 7, 54, 75, 211}) {
    for (const int64_t k : {10, 50, 54, 704}) {
      const auto& [chip, plan] = variants[i++ * 5 % variants.size()];
      Check({.number = GetParam(), .n = n, .k = k, .slots = {2, 0, 5}, .tokens = 4}, plan, chip);
    }
  }
}

TEST_P(GroupedProductTest, EmptyAndCrowdedExperts) {
  const auto variants = Variants(GetParam());
  if (variants.empty()) GTEST_SKIP() << "no device";
  std::vector<int> last(256), every(256, 1), third(77);
  last[255] = 40;
  for (size_t e = 0; e < third.size(); ++e) third[e] = e % 3 == 1 ? 9 : 0;
  for (const int token_tile : {8, 64}) {
    const Chip& chip = variants.back().first;
    for (const std::vector<int>& slots : {last, every, third, std::vector<int>(5)}) {
      Check({.number = GetParam(),
             .n = 16,
             .k = 24,
             .slots = slots,
             .tokens = 3,
             .gated = true,
             .spare = 6},
            Tile(token_tile), chip);
    }
  }
}

// The bits of a slot: the same beside every other, at every place, with every tile that streams.
TEST_P(GroupedProductTest, BitsDependOnTheRowAlone) {
  const auto variants = Variants(GetParam());
  if (variants.empty()) GTEST_SKIP() << "no device";
  Case one{.number = GetParam(), .n = 64, .k = 500, .slots = {0, 1}};
  std::vector<uint16_t> streamed;
  for (const auto& [chip, plan] : variants) {
    const Problem alone(one);
    const std::vector<uint16_t> expected = Product(one, alone, plan, chip);
    Case many = one;
    many.slots = {5, 40};
    Problem crowd(many);
    std::copy(alone.w.codes.begin(), alone.w.codes.end(), crowd.w.codes.begin());
    const int64_t place = 5 + 29;
    std::copy(alone.x.codes.begin(), alone.x.codes.end(),
              crowd.x.codes.begin() + place * static_cast<int64_t>(alone.x.codes.size()));
    if (GetParam() == GpuNumber::kE4m3) {
      crowd.w.scale = alone.w.scale;
      crowd.x.scale[place] = alone.x.scale[0];
    }
    const std::vector<uint16_t> y = Product(many, crowd, plan, chip);
    EXPECT_EQ(std::memcmp(&y[place * 64], expected.data(), 64 * 2), 0)
        << "token_tile " << plan.token_tile << " sm_" << chip.compute_capability;
    if (plan.token_tile > 32) continue;
    if (streamed.empty()) streamed.assign(expected.begin(), expected.begin() + 64);
    EXPECT_EQ(std::memcmp(streamed.data(), expected.data(), 64 * 2), 0)
        << "token_tile " << plan.token_tile << " sm_" << chip.compute_capability;
  }
}

// A recorded launch serves whatever the experts have by then, up to max_slots.
TEST_P(GroupedProductTest, ARecordedLaunchFollowsBegin) {
  const auto variants = Variants(GetParam());
  if (variants.empty()) GTEST_SKIP() << "no device";
  for (const auto& [chip, plan] : variants) {
    Case c{.number = GetParam(), .n = 16, .k = 40, .slots = {4, 0, 9}, .spare = 7};
    const Problem problem(c);
    GroupedParams p;
    p.w = {.number = c.number, .tiled = true, .n = c.n, .k = c.k};
    const DeviceBytes w(MatrixBytes(problem.w, p.w, 3)), w_scale(problem.w.scale);
    const Numbers x = MakeNumbers(c.number, 20, c.k, 12);
    const DeviceBytes x_bytes(Strided(x, PaddedStride(x))), x_scale(x.scale);
    const DeviceBytes begin(std::vector<int32_t>(4)), y(std::vector<uint16_t>(20 * 16, 0xffff));
    p.w.data = w.as();
    p.in = {.x = x_bytes.as(), .stride = PaddedStride(x)};
    if (c.number == GpuNumber::kE4m3) {
      p.w.scale = w_scale.as<float>();
      p.in.scale = x_scale.as<float>();
    }
    p.experts = 3;
    p.begin = begin.as<int32_t>();
    p.out = {.y = y.as(), .stride = 16};
    p.max_slots = 20;
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t recorded = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(LaunchGroupedProduct(p, plan, chip, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&recorded, graph, 0), cudaSuccess);
    const double unit = UsesE4m3Sums(c, plan, chip) ? 0x1p-13 : 0x1p-23;
    for (const std::vector<int32_t>& edges : std::vector<std::vector<int32_t>>{
             {0, 0, 0, 0}, {0, 4, 4, 13}, {0, 0, 20, 20}, {0, 1, 2, 3}}) {
      ASSERT_EQ(cudaMemcpyAsync(begin.as(), edges.data(), 16, cudaMemcpyHostToDevice, stream),
                cudaSuccess);
      ASSERT_EQ(cudaMemsetAsync(y.as(), 0xff, 20 * 16 * 2, stream), cudaSuccess);
      ASSERT_EQ(cudaGraphLaunch(recorded, stream), cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      const std::vector<uint16_t> bits = y.Read<uint16_t>();
      Comparison comparison;
      for (int e = 0; e < 3; ++e) {
        for (int s = edges[e]; s < edges[e + 1]; ++s) {
          for (int o = 0; o < 16; ++o) {
            comparison.Add("y", s, o, Bf16Value(bits[s * 16 + o]),
                           RoundedToBf16(Sum(problem.w, e * 16 + o, x, s, unit)));
          }
        }
      }
      for (int i = edges[3] * 16; i < 20 * 16; ++i) ASSERT_EQ(bits[i], 0xffff);
    }
    EXPECT_EQ(cudaGraphExecDestroy(recorded), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  }
}

#ifdef LAPIDARY_EMULATION
// The grid is for the worst case; blocks that find no tile leave before they read weights.
TEST_P(GroupedProductTest, BlocksWithoutATileTouchNothing) {
  for (const auto& [chip, plan] : Variants(GetParam())) {
    const Case c{.number = GetParam(), .n = 16, .k = 40, .slots = {0, 0, 0}, .spare = 30};
    simt::ResetLaunchCounts();
    Product(c, Problem(c), plan, chip);
    int64_t blocks = 0;
    for (const simt::KernelCounts& counts : simt::LaunchCounts()) {
      blocks += counts.blocks;
      EXPECT_EQ(counts.bytes_written, 0) << counts.kernel;
      // begin[] is read plainly, which the checked flavour counts.
      if (!simt::Checked()) {
        EXPECT_EQ(counts.bytes_read, 0) << counts.kernel;
      }
    }
    EXPECT_GT(blocks, 0);
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Numbers, GroupedProductTest,
                         testing::Values(GpuNumber::kBf16, GpuNumber::kE4m3), [](const auto& info) {
                           return info.param == GpuNumber::kBf16 ? "bf16" : "e4m3";
                         });

#ifdef LAPIDARY_EMULATION
// Bytes of global memory that a decode step's expert products move, against the least they could:
// the weights of the experts that are chosen, once; a token's row for each of its experts; outputs.
TEST(GroupedBytesTest, ReadsTheChosenExpertsOnceAndLittleElse) {
  const std::vector<int> one_token = {1, 0, 1, 0, 0, 1, 0, 1}, crowd = {3, 2, 0, 4, 1, 2, 3, 1};
  struct Bytes {
    const char* name;
    Case c;
  };
  // 26B-A4B: M 2816, experts 704 wide; a part of the outputs.
  const Bytes cases[] = {
      {"gate and up, 1 token", {GpuNumber::kBf16, 352, 2816, one_token, 1, true}},
      {"down, 1 token", {GpuNumber::kBf16, 352, 704, one_token, 0, false}},
      {"gate and up, 8 tokens", {GpuNumber::kBf16, 352, 704, crowd, 8, true}},
      {"gate and up, e4m3", {GpuNumber::kE4m3, 352, 2816, one_token, 1, true}},
  };
  for (const auto& [name, c] : cases) {
    const Problem problem(c);
    for (const Chip& chip : TestChips()) {
      simt::ResetLaunchCounts();
      GroupedParams p;
      p.w = {.number = c.number, .tiled = true, .n = c.n, .k = c.k};
      p.experts = c.experts();
      p.max_slots = c.used();
      Product(c, problem, PlanGrouped(p, chip), chip);
      const simt::KernelCounts counts = simt::CountsOf("grouped_product");
      const int64_t element = c.number == GpuNumber::kE4m3 ? 1 : 2;
      const int64_t scales = c.number == GpuNumber::kE4m3 ? 4 : 0;
      const auto chosen =
          std::count_if(c.slots.begin(), c.slots.end(), [](int n) { return n > 0; });
      const int64_t weights = chosen * c.n * (c.k * element + scales);
      const int64_t least =
          weights + c.used() * (c.k * element + scales + int64_t{c.outputs()} * 2);
      const int64_t moved = counts.bytes_read + counts.bytes_written;
      printf("%-22s sm_%d: %9ld bytes moved, %9ld at least (%.3f)\n", name, chip.compute_capability,
             static_cast<long>(moved), static_cast<long>(least),
             static_cast<double>(moved) / static_cast<double>(least));
      EXPECT_GE(moved, least) << name;
      // On top: inputs, read by each tile of outputs; checked, also the tables that every thread
      // reads, one sector in truth.
      EXPECT_LE(static_cast<double>(moved), 1.25 * static_cast<double>(least)) << name;
    }
  }
}
#endif

TEST(GroupedLaunchTest, RefusesWhatItCannotDo) {
  const Chip hopper{.compute_capability = 90, .processors = 132, .shared_bytes = 227 << 10};
  const Chip ada{.compute_capability = 89, .processors = 142, .shared_bytes = 99 << 10};
  alignas(16) static uint8_t memory[1024];
  static const int32_t begin[3] = {};
  GroupedParams good;
  good.w = {.data = memory, .tiled = true, .n = 16, .k = 16};
  good.experts = 2;
  good.begin = begin;
  good.in = {.x = memory, .stride = 16};
  good.out = {.y = memory, .stride = 16};
  EXPECT_EQ(LaunchGroupedProduct(good, {8, false, 64}, ada, nullptr), cudaSuccess);  // no slots
  const auto refused = [&](const Chip& chip, GroupedPlan plan, auto change) {
    GroupedParams p = good;
    change(p);
    EXPECT_EQ(LaunchGroupedProduct(p, plan, chip, nullptr), cudaErrorInvalidValue);
  };
  refused(ada, {8, false, 64}, [](auto& p) { p.w.tiled = false, p.w.k_stride = 16; });
  refused(ada, {8, false, 64}, [](auto& p) { p.experts = 257; });
  refused(ada, {8, false, 64}, [](auto& p) { p.begin = nullptr; });
  refused(ada, {8, false, 64}, [](auto& p) { p.max_slots = -1; });
  refused(ada, {8, false, 64}, [](auto& p) { p.out.epilogue = ProductEpilogue::kFp32; });
  refused(ada, {24, false, 64}, [](auto&) {});
  refused(ada, {16, false, 16}, [](auto&) {});
  refused(ada, {128, false, 64}, [](auto&) {});
  refused(ada, {128, true, 128}, [](auto&) {});
  refused(hopper, {64, true, 64}, [](auto&) {});
}

TEST(GroupedPlanTest, TilesFollowTheCrowd) {
  const Chip hopper{.compute_capability = 90, .processors = 132, .shared_bytes = 227 << 10};
  const Chip ada{.compute_capability = 89, .processors = 142, .shared_bytes = 99 << 10};
  const auto plan = [](int64_t tokens, const Chip& chip) {
    GroupedParams p;
    p.experts = 128;
    p.w.n = 1408;
    p.max_slots = tokens * 8;
    return PlanGrouped(p, chip);
  };
  EXPECT_EQ(plan(1, hopper).token_tile, 8);
  EXPECT_EQ(plan(1, hopper).row_tile, 64);  // 8 experts of 22 tiles
  GroupedParams share;                      // of eight ranks: one expert of 22 tiles, usually
  share.experts = 16, share.w.n = 1408, share.max_slots = 8, share.expected_slots = 1;
  EXPECT_EQ(PlanGrouped(share, hopper).row_tile, 16);
  EXPECT_EQ(plan(64, hopper).token_tile, 8);
  EXPECT_EQ(plan(128, hopper).token_tile, 16);
  EXPECT_EQ(plan(256, hopper).token_tile, 32);
  EXPECT_EQ(plan(512, hopper).token_tile, 64);
  EXPECT_FALSE(plan(512, hopper).wgmma);
  EXPECT_EQ(plan(8192, hopper).token_tile, 128);
  EXPECT_TRUE(plan(8192, hopper).wgmma);
  EXPECT_EQ(plan(8192, ada).token_tile, 128);
  EXPECT_FALSE(plan(8192, ada).wgmma);
  for (const int tile : {8, 16, 32, 64, 128})
    EXPECT_LE(GroupedSharedBytes(GroupedRowTile(tile), tile), 99 << 10);
}

// The bound holds for every way to spread slots over experts.
TEST(GroupedPlanTest, ItemsBoundTheTiles) {
  std::mt19937 random(13);
  for (int round = 0; round < 2000; ++round) {
    const int experts = 1 + static_cast<int>(random() % 20);
    const int tile = 8 << random() % 5;
    int64_t slots = 0, tiles = 0;
    for (int e = 0; e < experts; ++e) {
      const int n = random() % 3 == 0 ? 0 : static_cast<int>(random() % 40);
      slots += n;
      tiles += (n + tile - 1) / tile;
    }
    EXPECT_LE(tiles, GroupedItems(slots, experts, tile));
    EXPECT_LE(tiles, GroupedItems(slots + 3, experts, tile));
  }
  EXPECT_EQ(GroupedItems(8, 128, 8), 8);
  EXPECT_EQ(GroupedItems(0, 128, 8), 0);
}

}  // namespace
}  // namespace lapidary
