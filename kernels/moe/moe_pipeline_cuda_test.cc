// The whole mixture of experts, router to combined rows, as a rank runs it.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/gemm/product_cuda_test_support.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "kernels/moe/moe_cuda.h"

namespace lapidary {
namespace {

constexpr int kExperts = 6, kTopK = 3;
constexpr int64_t kDim = 72, kWidth = 40;

// Two ranks hold experts [0, 4) and [4, 6); their rows add up to the reference.
void CheckPipeline(int64_t tokens, GroupedPlan plan, const Chip& chip) {
  SCOPED_TRACE(testing::Message() << tokens << " tokens, token_tile " << plan.token_tile
                                  << (plan.wgmma ? " wgmma" : "") << " sm_"
                                  << chip.compute_capability);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto draw = [&](int64_t n) {
    std::vector<float> v(n);
    for (float& f : v) f = normal(random);
    return v;
  };
  const DeviceBytes x(draw(tokens * kDim)), norm(draw(kDim)), router(draw(kExperts * kDim));
  const std::vector<float> factors = draw(kExperts);
  const DeviceBytes factor(factors), logits(tokens * kExperts * 4);
  const DeviceBytes chosen(tokens * kTopK * 4), weight(tokens * kTopK * 4);
  const Numbers h = MakeNumbers(GpuNumber::kBf16, tokens, kDim, 4);
  const DeviceBytes h_bytes(Strided(h, kDim));
  const Numbers gate_up = MakeNumbers(GpuNumber::kBf16, kExperts * GatedRows(kWidth), kDim, 5);
  const Numbers down = MakeNumbers(GpuNumber::kBf16, kExperts * kDim, kWidth, 6);

  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(LaunchRouter({.x = x.as<float>(),
                          .x_stride = kDim,
                          .norm_weight = norm.as<float>(),
                          .w = router.as<float>(),
                          .w_stride = kDim,
                          .factor = factor.as<float>(),
                          .tokens = tokens,
                          .dim = kDim,
                          .experts = kExperts,
                          .top_k = kTopK,
                          .logits = logits.as<float>(),
                          .chosen = chosen.as<int32_t>(),
                          .weight = weight.as<float>()},
                         stream),
            cudaSuccess);
  std::vector<double> sum(tokens * kDim), magnitude(tokens * kDim);
  const int edges[] = {0, 4, kExperts};
  for (int rank = 0; rank < 2; ++rank) {
    const int first = edges[rank], experts = edges[rank + 1] - first;
    const int64_t slots = tokens * kTopK;
    const DeviceBytes begin((experts + 1) * 4), token_of(slots * 4), slot_of(slots * 4);
    const DeviceBytes inner(std::vector<uint16_t>(slots * kWidth, 0xffff));
    const DeviceBytes outer(std::vector<uint16_t>(slots * kDim, 0xffff));
    const DeviceBytes y(std::vector<uint16_t>(tokens * kDim, 0xffff));
    GroupedParams in, out;
    in.w = {.tiled = true, .n = GatedRows(kWidth), .k = kDim};
    out.w = {.tiled = true, .n = kDim, .k = kWidth};
    const std::vector<uint8_t> all_in = MatrixBytes(gate_up, in.w, kExperts);
    const std::vector<uint8_t> all_out = MatrixBytes(down, out.w, kExperts);
    const auto part = [&](const std::vector<uint8_t>& all, int64_t bytes) {
      return std::vector<uint8_t>(all.begin() + first * bytes,
                                  all.begin() + (first + experts) * bytes);
    };
    const DeviceBytes in_bytes(part(all_in, in.w.bytes())), out_bytes(part(all_out, out.w.bytes()));
    ASSERT_EQ(LaunchExpertSort({.chosen = chosen.as<int32_t>(),
                                .tokens = tokens,
                                .top_k = kTopK,
                                .first_expert = first,
                                .experts = experts,
                                .begin = begin.as<int32_t>(),
                                .token_of = token_of.as<int32_t>(),
                                .slot_of = slot_of.as<int32_t>()},
                               stream),
              cudaSuccess);
    in.w.data = in_bytes.as();
    in.experts = experts;
    in.begin = begin.as<int32_t>();
    in.row_of = token_of.as<int32_t>();
    in.in = {.x = h_bytes.as(), .stride = kDim};
    in.out = {.y = inner.as(), .stride = kWidth, .epilogue = ProductEpilogue::kGatedGelu};
    in.max_slots = slots;
    ASSERT_EQ(LaunchGroupedProduct(in, plan, chip, stream), cudaSuccess);
    out.w.data = out_bytes.as();
    out.experts = experts;
    out.begin = begin.as<int32_t>();
    out.in = {.x = inner.as(), .stride = kWidth};
    out.out = {.y = outer.as(), .stride = kDim};
    out.max_slots = slots;
    ASSERT_EQ(LaunchGroupedProduct(out, plan, chip, stream), cudaSuccess);
    ASSERT_EQ(LaunchExpertCombine({.out = outer.as<__nv_bfloat16>(),
                                   .out_stride = kDim,
                                   .slot_of = slot_of.as<int32_t>(),
                                   .weight = weight.as<float>(),
                                   .tokens = tokens,
                                   .dim = kDim,
                                   .top_k = kTopK,
                                   .y = y.as<__nv_bfloat16>(),
                                   .y_stride = kDim},
                                  stream),
              cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const std::vector<uint16_t> rows = y.Read<uint16_t>();
    for (size_t i = 0; i < rows.size(); ++i) {
      sum[i] += Bf16Value(rows[i]);
      magnitude[i] += std::abs(Bf16Value(rows[i]));
    }
  }
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);

  // The choice and its weights are the device's own; moe_cuda_test looks at those.
  const std::vector<int32_t> experts = chosen.Read<int32_t>();
  const std::vector<float> weights = weight.Read<float>();
  Comparison comparison;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<Expected> row(kDim);
    for (int j = 0; j < kTopK; ++j) {
      const int64_t e = experts[t * kTopK + j];
      ASSERT_TRUE(e >= 0 && e < kExperts);
      std::vector<Expected> act(kWidth);
      for (int64_t o = 0; o < kWidth; ++o) {
        const int64_t rows = e * GatedRows(kWidth);
        act[o] = RoundedToBf16(
            Gated(Sum(gate_up, rows + GateRow(o), h, t), Sum(gate_up, rows + UpRow(o), h, t)));
      }
      for (int64_t i = 0; i < kDim; ++i) {
        Expected sums;
        double size = 0;
        for (int64_t o = 0; o < kWidth; ++o) {
          const double w = down.value[(e * kDim + i) * kWidth + o];
          sums.value += w * act[o].value;
          sums.error += std::abs(w) * act[o].error;
          size += std::abs(w) * (std::abs(act[o].value) + act[o].error);
        }
        sums.error += size * static_cast<double>(kWidth + 8) * 0x1p-23;
        const Expected out = RoundedToBf16(sums);
        const double w = weights[t * kTopK + j];
        row[i].value += w * out.value;
        row[i].error += std::abs(w) * (out.error + kTopK * 0x1p-24 * std::abs(out.value));
      }
    }
    for (int64_t i = 0; i < kDim; ++i) {
      const int64_t at = t * kDim + i;
      row[i].error += 0x1p-8 * magnitude[at] + 0x1p-133;  // each rank's row is rounded
      comparison.Add("y", t, i, sum[at], row[i]);
    }
  }
}

TEST(MoePipelineTest, FollowsTheReference) {
  const std::vector<Chip> chips = TestChips();
  if (chips.empty()) GTEST_SKIP() << "no device";
  for (const Chip& chip : chips) {
    CheckPipeline(1, {8, false, 16}, chip);
    CheckPipeline(21, {16, false, 64}, chip);
    CheckPipeline(50, {64, false, 64}, chip);
    if (chip.has_wgmma()) CheckPipeline(300, {128, true, 128}, chip);
  }
}

}  // namespace
}  // namespace lapidary
