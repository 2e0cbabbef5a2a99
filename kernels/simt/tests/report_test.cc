// Counts by kernel, and traffic by source line.
#include "kernels/simt/report.h"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "kernels/simt/tests/block_sum_cuda.h"
#include "kernels/simt/tests/run_kernel.h"

namespace lapidary::simt {
namespace {

__global__ void CopyRows(const float4* in, float4* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  gpu::Store(&out[i], gpu::Load<float4>(&in[i]));
}
__global__ void CopyPlainly(const float* in, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
}

TEST(Report, CountsLaunchesThreadsAndBytes) {
  ResetLaunchCounts();
  Buffer<float4> in(128), out(128);
  in.Fill({});
  for (int i = 0; i < 3; ++i) Failures({2, 64}, CopyRows, in.data(), out.data());
  const KernelCounts c = CountsOf("test");
  EXPECT_EQ(c.launches, 3);
  EXPECT_EQ(c.blocks, 6);
  EXPECT_EQ(c.threads, 384);
  EXPECT_EQ(c.bytes_read, 3 * 2048);
  EXPECT_EQ(c.bytes_written, 3 * 2048);
  EXPECT_EQ(CountsOf("nothing of this name").launches, 0);
}
TEST(Report, PlainAccessesCountInTheCheckedFlavour) {
  ResetLaunchCounts();
  Buffer<float> in(128), out(128);
  in.Fill(0);
  Failures({2, 64}, CopyPlainly, in.data(), out.data());
  EXPECT_EQ(CountsOf("test").bytes_read, Checked() ? 512 : 0);
  EXPECT_EQ(CountsOf("test").bytes_written, Checked() ? 512 : 0);
}
TEST(Report, KernelsGoByTheirLaunchName) {
  ResetLaunchCounts();
  void *x = nullptr, *sum = nullptr;
  ASSERT_EQ(cudaMalloc(&x, 4096), cudaSuccess);
  ASSERT_EQ(cudaMemset(x, 0, 4096), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&sum, 8), cudaSuccess);
  BlockSumParams p;
  p.x = static_cast<float*>(x);
  p.sum = static_cast<float*>(sum);
  p.rows = 2;
  p.width = 512;
  ASSERT_EQ(LaunchBlockSum(p, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(CountsOf("block_sum").threads, 256);
  EXPECT_EQ(CountsOf("block_sum").bytes_read, 4096) << "cp.async counts";
  if (Checked()) {
    EXPECT_EQ(CountsOf("block_sum").bytes_written, 8);
  }
}
TEST(ReportDeathTest, WritesJsonAtTheEnd) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::string path = testing::TempDir() + "/simt_report.json";
  EXPECT_EXIT(
      {
        setenv("SIMT_REPORT", path.c_str(), 1);
        Buffer<float4> in(64);
        Buffer<float4> out(64);
        in.Fill({});
        Failures({1, 64}, CopyRows, in.data(), out.data());
        exit(0);
      },
      testing::ExitedWithCode(0), "");
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_THAT(text.str(),
              testing::HasSubstr("\"kernel\": \"test\", \"launches\": 1, \"blocks\": 1, "
                                 "\"threads\": 64, \"bytes_read\": 1024"));
}

// -- Traffic.

// Row r, word c of a tile [32][32] at word r * pitch + c: a column of 32 has 32 / (words apart)
// banks.
__global__ void Columns(float* out, int pitch) {
  GPU_DYN_SMEM(float, s);
  const int t = static_cast<int>(threadIdx.x);
  for (int r = 0; r < 32; ++r) gpu::Store(&s[r * pitch + t], 1.0f);
  __syncwarp();
  out[t] = gpu::Load<float>(&s[t * pitch]);
}
class TrafficTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Checked()) GTEST_SKIP() << "only the checker sees it";
    WantTraffic(true);
    ResetTraffic();
  }
  void TearDown() override { WantTraffic(false); }
};
TEST_F(TrafficTest, CountsBankConflicts) {
  Buffer<float> out(32);
  for (const auto& [pitch, conflicts] : {std::pair{32, 31}, {33, 0}, {34, 1}, {36, 3}}) {
    ResetTraffic();
    EXPECT_THAT(Failures({1, 32, 32 * 36 * 4}, Columns, out.data(), pitch), testing::IsEmpty());
    EXPECT_EQ(BankConflicts("test"), conflicts) << pitch;
  }
}
// Chunks of 16 bytes of rows of 128 bytes, as ldmatrix takes them: a column of 8 rows conflicts
// eightfold unless the chunks are swizzled.
__global__ void MatrixRows(uint32_t* out, bool swizzled) {
  GPU_DYN_SMEM(uint4, s);  // [32][8]
  const unsigned lane = threadIdx.x;
  for (unsigned c = 0; c < 8; ++c) gpu::Store(&s[lane * 8 + (c + lane) % 8], uint4{});
  __syncwarp();
  uint32_t r[4];
  gpu::Ldmatrix4(r, &s[lane * 8 + (swizzled ? lane % 8 : 0)]);
  out[lane] = r[0];
}
TEST_F(TrafficTest, KnowsLdmatrix) {
  Buffer<uint32_t> out(32);
  for (const bool swizzled : {true, false}) {
    ResetTraffic();
    EXPECT_THAT(Failures({1, 32, 4096}, MatrixRows, out.data(), swizzled), testing::IsEmpty());
    EXPECT_EQ(BankConflicts("test"), swizzled ? 0 : 4 * 7);
  }
}
__global__ void Strided(const float* in, float* out, int stride) {
  const int t = static_cast<int>(threadIdx.x);
  out[t] = gpu::Load<float>(&in[t * stride]);
}
TEST_F(TrafficTest, CountsSectors) {
  Buffer<float> in(32 * 8), out(32);
  in.Fill(0);
  for (const auto& [stride, sectors] : {std::pair{1, 4}, {2, 8}, {8, 32}}) {
    ResetTraffic();
    EXPECT_THAT(Failures({1, 32}, Strided, in.data(), out.data(), stride), testing::IsEmpty());
    bool found = false;
    for (const LineTraffic& t : Traffic("test")) {
      if (t.shared || t.write) continue;
      found = true;
      EXPECT_EQ(t.requests, 1);
      EXPECT_EQ(t.units, sectors) << stride;
      EXPECT_EQ(t.ideal, 4);
      EXPECT_EQ(t.bytes, 4);
      EXPECT_THAT(t.line, testing::HasSubstr("report_test.cc:"));
    }
    EXPECT_TRUE(found);
  }
}

}  // namespace
}  // namespace lapidary::simt
