#include "kernels/simt/tests/block_sum_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lapidary {
namespace {

class BlockSumTest : public testing::TestWithParam<std::pair<int64_t, int64_t>> {};

TEST_P(BlockSumTest, SumsRows) {
  const auto [rows, width] = GetParam();
  std::vector<float> x(rows * width);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 1000) - 500;
  BlockSumParams p;
  p.rows = rows;
  p.width = width;
  float* device_x = nullptr;
  float* device_sum = nullptr;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&device_x), x.size() * 4 + 16), cudaSuccess);
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&device_sum), rows * 4), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(device_x, x.data(), x.size() * 4, cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // it may still be on its way
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  p.x = device_x;
  p.sum = device_sum;
  ASSERT_EQ(LaunchBlockSum(p, stream), cudaSuccess);
  std::vector<float> sum(rows, NAN);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(sum.data(), device_sum, rows * 4, cudaMemcpyDeviceToHost), cudaSuccess);
  for (int64_t r = 0; r < rows; ++r) {
    double expected = 0;
    for (int64_t i = 0; i < width; ++i) expected += x[r * width + i];
    // Whole numbers whose sums stay below 2^24: exact.
    EXPECT_EQ(sum[r], expected) << "row " << r;
  }
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaFree(device_x), cudaSuccess);
  EXPECT_EQ(cudaFree(device_sum), cudaSuccess);
}

INSTANTIATE_TEST_SUITE_P(Sizes, BlockSumTest,
                         testing::Values(std::pair{1, 4}, std::pair{3, 0}, std::pair{2, 508},
                                         std::pair{2, 512}, std::pair{5, 516},
                                         std::pair{2, 12000}));

}  // namespace
}  // namespace lapidary
