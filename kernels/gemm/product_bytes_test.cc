// What the device products move, as the executor counts it: emulation alone
// (kernels/simt/report.h).
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/gemm/product_cuda_test_support.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "kernels/gemm/stream_product_plan.h"
#include "kernels/simt/report.h"

namespace lapidary {
namespace {

void Print(const char* what, int64_t moved, int64_t least) {
  std::printf("%s: %lld bytes moved, at least %lld: %.3f\n", what, static_cast<long long>(moved),
              static_cast<long long>(least),
              static_cast<double>(moved) / static_cast<double>(least));
}

// A decode step of experts: each tile of an active expert is read once per token tile, a slot's row
// of x once per 64 outputs (from the L2 cache), and nothing else.
TEST(ProductBytesTest, ActiveExpertsAreReadOnce) {
  const std::vector<int> slots = {0, 1, 0, 2, 9, 0, 0, 1, 3, 0};
  const int64_t used = std::accumulate(slots.begin(), slots.end(), 0);
  for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
    for (const int kind : {80, 90}) {
      for (const int token_tile : {8, 16}) {
        const Chip chip{.compute_capability = kind, .processors = 132, .shared_bytes = 163 << 10};
        GroupedParams p;
        p.w = {.number = number, .tiled = true, .n = 192, .k = 256};
        p.experts = static_cast<int>(slots.size());
        const Numbers w = MakeNumbers(number, p.experts * p.w.n, p.w.k, 1);
        const Numbers x = MakeNumbers(number, used, p.w.k, 2);
        std::vector<int32_t> begin = {0};
        int64_t active = 0, tiles = 0;
        for (const int n : slots) {
          begin.push_back(begin.back() + n);
          active += n > 0 ? 1 : 0;
          tiles += (n + token_tile - 1) / token_tile;
        }
        const DeviceBytes matrix(MatrixBytes(w, p.w, p.experts)), w_scale(w.scale);
        const DeviceBytes rows(Strided(x, p.w.k)), x_scale(x.scale), device_begin(begin);
        const DeviceBytes y(used * (p.w.n / 2) * 2);
        p.w.data = matrix.as();
        p.in = {.x = rows.as(), .stride = p.w.k};
        if (number == GpuNumber::kE4m3) {
          p.w.scale = w_scale.as<float>();
          p.in.scale = x_scale.as<float>();
        }
        p.begin = device_begin.as<int32_t>();
        p.out = {.y = y.as(), .stride = p.w.n / 2, .epilogue = ProductEpilogue::kGatedGelu};
        p.max_slots = used + 40;
        simt::ResetLaunchCounts();
        ASSERT_EQ(LaunchGroupedProduct(p, {token_tile, false, 64}, chip, nullptr), cudaSuccess);
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        const simt::KernelCounts counts = simt::CountsOf("grouped_product");
        const int64_t weights = tiles * p.w.bytes();
        const int64_t x_bytes = used * p.w.k * p.w.element_bytes();
        const int64_t y_bytes = used * p.w.n / 2 * 2;
        EXPECT_EQ(counts.launches, 1);
        EXPECT_EQ(counts.bytes_read, weights + x_bytes * p.w.tiles_n());
        EXPECT_EQ(counts.bytes_written, y_bytes);
        const int64_t least = active * p.w.bytes() + x_bytes + y_bytes;
        if (token_tile == 16) {
          EXPECT_EQ(weights, active * p.w.bytes());
        }
        Print("grouped decode step", counts.bytes_read + counts.bytes_written, least);
      }
    }
  }
}

TEST(ProductBytesTest, AStreamedMatrixIsReadOnce) {
  for (const bool tiled : {false, true}) {
    for (const int tokens : {1, 8, 32}) {
      GpuMatrix w{.tiled = tiled, .n = 211, .k = 330, .k_stride = 336};
      const Numbers numbers = MakeNumbers(w.number, w.n, w.k, 1);
      const Numbers x = MakeNumbers(w.number, tokens, w.k, 2);
      const DeviceBytes matrix(MatrixBytes(numbers, w)), rows(Strided(x, 336));
      const DeviceBytes y(tokens * 216 * 2);
      w.data = matrix.as();
      const Chip chip{.compute_capability = 80, .processors = 4, .shared_bytes = 163 << 10};
      const StreamPlan plan = PlanStream(w, tokens, chip);
      simt::ResetLaunchCounts();
      ASSERT_EQ(LaunchStreamProduct(w, {.x = rows.as(), .stride = 336}, tokens,
                                    {.y = y.as(), .stride = 216}, plan, chip, nullptr),
                cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const simt::KernelCounts counts = simt::CountsOf("stream_product");
      const int64_t blocks = (w.n + plan.row_tile - 1) / plan.row_tile;
      const int64_t weights = tiled ? w.bytes() : w.n * w.k * 2, x_bytes = tokens * w.k * 2;
      EXPECT_EQ(counts.bytes_read, weights + blocks * x_bytes);
      EXPECT_EQ(counts.bytes_written, tokens * 216 * 2);
      Print(tiled ? "stream, tiled" : "stream, row-major", counts.bytes_read + counts.bytes_written,
            w.n * w.k * 2 + x_bytes + tokens * w.n * 2);
    }
  }
}

}  // namespace
}  // namespace lapidary
