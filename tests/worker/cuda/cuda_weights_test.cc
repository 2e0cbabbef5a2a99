// Matrices on their way from a checkpoint to a GPU: what lies there is what the file says.
#include "worker/cuda/cuda_weights.h"

#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstring>

#include "common/base/half.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

// A stored tensor with numbers that tell where they are.
struct Tensor {
  Tensor(DType dtype, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows * columns; ++i) {
      values.push_back(RoundToBf16(static_cast<float>((i * 37) % 1001 - 500) / 128));
    }
    stored.dtype = dtype;
    stored.shape = {rows, columns};
    for (const float v : values) {
      if (dtype == DType::kF32) {
        bytes.resize(bytes.size() + 4);
        std::memcpy(bytes.data() + bytes.size() - 4, &v, 4);
      } else {
        const uint16_t bits = ToBf16(v);
        bytes.resize(bytes.size() + 2);
        std::memcpy(bytes.data() + bytes.size() - 2, &bits, 2);
      }
    }
    stored.data = bytes.data();
    stored.bytes = std::ssize(bytes);
  }
  float at(int64_t row, int64_t column) const { return values[row * stored.shape[1] + column]; }

  std::vector<float> values;
  std::vector<uint8_t> bytes;
  StoredTensor stored;
};

// Row `row` of a matrix in device memory, as floats.
std::vector<float> RowOf(const GpuMatrix& m, int64_t row) {
  std::vector<uint8_t> all(m.bytes());
  EXPECT_EQ(cudaMemcpy(all.data(), m.data, all.size(), cudaMemcpyDeviceToHost), cudaSuccess);
  float scale = 1;
  if (m.scale != nullptr) {
    EXPECT_EQ(cudaMemcpy(&scale, m.scale + row, 4, cudaMemcpyDeviceToHost), cudaSuccess);
  }
  std::vector<float> values;
  for (int64_t k = 0; k < m.k; ++k) {
    const int64_t byte = k * m.element_bytes();
    int64_t at = row * m.k_stride * m.element_bytes() + byte;
    if (m.tiled) {
      const int64_t tile = row / 64 * m.tiles_k() + byte / 128, within = byte % 128;
      at = tile * 8192 + row % 64 * 128 + ((within / 16) ^ (row % 8)) * 16 + within % 16;
    }
    if (m.number == GpuNumber::kBf16) {
      uint16_t bits;
      std::memcpy(&bits, all.data() + at, 2);
      values.push_back(FromBf16(bits));
    } else {
      __nv_fp8_e4m3 code;
      code.__x = all[at];
      values.push_back(static_cast<float>(code) * scale);
    }
  }
  return values;
}

class CudaWeightsTest : public testing::TestWithParam<ComputeType> {
 protected:
  CudaWeightsTest() : stream_(*CudaStream::Create()), weights_(GetParam(), *stream_) {}
  // e4m3 has 3 bits behind the point, and the row's largest is 448: half a unit in the last place,
  // or half the smallest step.
  void ExpectNear(float got, float stored, float largest) {
    const float tolerance = GetParam() == ComputeType::kBf16
                                ? 0
                                : std::max(std::fabs(stored) * 0x1p-4f, largest / 448 * 0x1p-10f);
    EXPECT_NEAR(got, stored, tolerance);
  }
  void ExpectRow(const GpuMatrix& m, int64_t row, const Tensor& t, int64_t stored_row,
                 Range columns) {
    const std::vector<float> got = RowOf(m, row);
    float largest = 0;
    for (int64_t c = columns.begin; c < columns.end; ++c) {
      largest = std::max(largest, std::fabs(t.at(stored_row, c)));
    }
    for (int64_t c = columns.begin; c < columns.end; ++c) {
      ExpectNear(got[c - columns.begin], t.at(stored_row, c), largest);
    }
  }

  std::unique_ptr<CudaStream> stream_;
  CudaWeights weights_;
};

TEST_P(CudaWeightsTest, PartsAreStackedAndCut) {
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    const Tensor a(dtype, 10, 70), b(dtype, 6, 70);
    MatrixSource source{.name = "qkv"};
    source.parts = {{&a.stored, {3, 10}, {8, 61}}, {&b.stored, {0, 5}, {8, 61}}};
    const auto handle = weights_.AddMatrix(source);
    ASSERT_TRUE(handle.ok()) << handle.status();
    ASSERT_TRUE(stream_->Synchronize().ok());
    const GpuMatrix& m = weights_.matrix(*handle).gpu;
    EXPECT_EQ(m.n, 12);
    EXPECT_EQ(m.k, 53);
    for (int64_t r = 0; r < 7; ++r) ExpectRow(m, r, a, 3 + r, {8, 61});
    for (int64_t r = 0; r < 5; ++r) ExpectRow(m, 7 + r, b, r, {8, 61});
  }
}

TEST_P(CudaWeightsTest, GatesAndUpsAreInterleaved) {
  const Tensor gate(DType::kBf16, 11, 24), up(DType::kBf16, 11, 24);
  MatrixSource source{.name = "gate_up", .gated = true};
  source.parts = {{&gate.stored, {0, 11}, {0, 24}}, {&up.stored, {0, 11}, {0, 24}}};
  const auto handle = weights_.AddMatrix(source);
  ASSERT_TRUE(handle.ok()) << handle.status();
  ASSERT_TRUE(stream_->Synchronize().ok());
  const GpuMatrix& m = weights_.matrix(*handle).gpu;
  EXPECT_EQ(m.n, 32);  // 11 outputs in two eights, each with its ups
  for (int64_t o = 0; o < 11; ++o) {
    ExpectRow(m, GateRow(o), gate, o, {0, 24});
    ExpectRow(m, UpRow(o), up, o, {0, 24});
  }
  EXPECT_THAT(RowOf(m, GateRow(13)), testing::Each(0.0f));
}

TEST_P(CudaWeightsTest, AStackLiesInOneRunOfTiles) {
  constexpr int kExperts = 3;
  const Tensor gate_up(DType::kBf16, kExperts * 20, 72), down(DType::kBf16, kExperts * 72, 10);
  std::vector<MatrixHandle> ups, downs;
  for (int e = 0; e < kExperts; ++e) {  // in turns, as experts are loaded
    MatrixSource up{.name = "up", .gated = true, .stack = {e, kExperts}};
    up.parts = {{&gate_up.stored, {e * 20, e * 20 + 20}, {0, 72}}};
    MatrixSource to{.name = "down", .stack = {e, kExperts}};
    to.parts = {{&down.stored, {e * 72, e * 72 + 72}, {0, 10}}};
    const auto a = weights_.AddMatrix(up), b = weights_.AddMatrix(to);
    ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
    ups.push_back(*a);
    downs.push_back(*b);
  }
  ASSERT_TRUE(stream_->Synchronize().ok());
  for (int e = 0; e < kExperts; ++e) {
    const GpuMatrix &up = weights_.matrix(ups[e]).gpu, &to = weights_.matrix(downs[e]).gpu;
    EXPECT_TRUE(up.tiled && to.tiled);
    const auto first = static_cast<const uint8_t*>(weights_.matrix(ups[0]).gpu.data);
    EXPECT_EQ(static_cast<const uint8_t*>(up.data) - first, e * up.bytes());
    for (int64_t o = 0; o < 10; ++o) {
      ExpectRow(up, GateRow(o), gate_up, e * 20 + o, {0, 72});
      ExpectRow(up, UpRow(o), gate_up, e * 20 + 10 + o, {0, 72});
    }
    for (const int64_t o : {0, 63, 64, 71}) ExpectRow(to, o, down, e * 72 + o, {0, 10});
  }
}

TEST_P(CudaWeightsTest, BytesAreWhatPlanningSays) {
  const Tensor t(DType::kBf16, 40, 30);
  MatrixSource source{.name = "m"};
  source.parts = {{&t.stored, {0, 40}, {0, 30}}};
  const int64_t before = weights_.bytes();
  ASSERT_TRUE(weights_.AddMatrix(source).ok());
  EXPECT_EQ(weights_.bytes() - before, weights_.MatrixBytes(source));
}

TEST_P(CudaWeightsTest, TheRouterStaysFp32AndTheHeadBf16) {
  const Tensor t(DType::kF32, 9, 13);
  MatrixSource router{.name = "router", .keep_fp32 = true};
  router.parts = {{&t.stored, {0, 9}, {0, 13}}};
  MatrixSource head{.name = "head", .at_least_bf16 = true};
  head.parts = router.parts;
  const auto a = weights_.AddMatrix(router), b = weights_.AddMatrix(head);
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  const CudaWeights::Matrix& m = weights_.matrix(*a);
  std::vector<float> rows(9 * m.fp32_stride);
  ASSERT_EQ(cudaMemcpy(rows.data(), m.fp32, rows.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
  for (int64_t r = 0; r < 9; ++r) {
    for (int64_t c = 0; c < 13; ++c) EXPECT_EQ(rows[r * m.fp32_stride + c], t.at(r, c));
  }
  EXPECT_EQ(weights_.matrix(*b).gpu.number, GpuNumber::kBf16);
}

TEST_P(CudaWeightsTest, AFullGpuIsSaid) {
  const Tensor t(DType::kBf16, 1, 8);
  MatrixSource source{.name = "layers.3.qkv"};
  source.parts = {{&t.stored, {0, int64_t{1} << 40}, {0, 8}}};
  const auto added = weights_.AddMatrix(source);
  EXPECT_EQ(added.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(added.status().message(), testing::HasSubstr("layers.3.qkv"));
}

INSTANTIATE_TEST_SUITE_P(Compute, CudaWeightsTest,
                         testing::Values(ComputeType::kBf16, ComputeType::kFp8),
                         [](const auto& info) { return Name(info.param); });

}  // namespace
}  // namespace lapidary
