// Gates and soft cap against double precision. A bf16 store errs by 2^-8 of the value.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/device_test_support.h"
#include "kernels/elementwise/row_ops_cuda.h"

namespace lapidary {
namespace {

constexpr double kBf16Store = 0x1p-8;

// gelu, and how far GeluTanh may be from it (kernels/elementwise/gelu.h).
struct Gelu {
  double value, error;
};
Gelu ReferenceGelu(double x) {
  const double z = -2 * std::sqrt(2 / M_PI) * std::log2(std::exp(1.0)) * (x + 0.044715 * x * x * x);
  const double value = x / (1 + std::exp2(z));
  return {value, std::abs(value) * (std::abs(z) + 3) * 0x1p-22 + 0x1p-120};
}

// [rows, 2 * round8(width)] of a product, from gates and ups.
std::vector<__nv_bfloat16> Interleave(const std::vector<__nv_bfloat16>& gate,
                                      const std::vector<__nv_bfloat16>& up, int64_t rows,
                                      int64_t width, int64_t in_stride) {
  std::vector<__nv_bfloat16> both(rows * in_stride, Bf16(NAN));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      both[r * in_stride + i / 8 * 16 + i % 8] = gate[r * width + i];
      both[r * in_stride + i / 8 * 16 + 8 + i % 8] = up[r * width + i];
    }
  }
  return both;
}

void CheckGatedGelu(const std::vector<__nv_bfloat16>& gate, const std::vector<__nv_bfloat16>& up,
                    int64_t rows, int64_t width, int64_t in_stride, int64_t out_stride,
                    int64_t skew) {
  DeviceArray<__nv_bfloat16> in(Interleave(gate, up, rows, width, in_stride), skew);
  DeviceArray<__nv_bfloat16> out(rows * out_stride, skew);
  GatedGeluParams p;
  p.gate_up = in.data();
  p.in_stride = in_stride;
  p.out = out.data();
  p.out_stride = out_stride;
  p.rows = rows;
  p.width = width;
  TestStream stream;
  ASSERT_EQ(LaunchGatedGelu(p, stream), cudaSuccess);
  const std::vector<__nv_bfloat16> got = out.Get();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < out_stride; ++i) {
      const double value = double{Float(got[r * out_stride + i])};
      if (i >= width) {
        ASSERT_EQ(value, 0) << "padding";
        continue;
      }
      const double u = double{Float(up[r * width + i])};
      const Gelu gelu = ReferenceGelu(double{Float(gate[r * width + i])});
      const double expected = gelu.value * u;
      if (std::abs(expected) > 3e38) continue;  // overflows
      ASSERT_NEAR(value, expected, std::abs(expected) * kBf16Store + 2 * gelu.error * std::abs(u))
          << "gate " << Float(gate[r * width + i]) << ", up " << u;
    }
  }
}

TEST(GatedGelu, EveryFiniteGate) {
  std::vector<__nv_bfloat16> gate;
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float v = FromBf16(static_cast<uint16_t>(bits));
    if (std::isfinite(v)) gate.push_back(Bf16(v));
  }
  const auto width = static_cast<int64_t>(gate.size());
  const std::vector<__nv_bfloat16> up = RandomBf16(width, 2, 1);
  CheckGatedGelu(gate, up, 1, width, 2 * (width + 7) / 8 * 8, width, 0);
}

TEST(GatedGelu, Shapes) {
  struct Shape {
    int64_t rows, width, in_stride, out_stride, skew;
  };
  for (const Shape& s :
       {Shape{1, 1, 16, 8, 0}, Shape{3, 8, 16, 8, 0}, Shape{2, 13, 32, 16, 0},
        Shape{2, 704, 1408, 704, 0}, Shape{2, 704, 1409, 707, 1}, Shape{3, 2112, 4224, 2112, 0},
        Shape{1, 21504, 43008, 21504, 0}, Shape{2, 2048, 4096, 2060, 0}}) {
    CheckGatedGelu(RandomBf16(s.rows * s.width, 2, 2), RandomBf16(s.rows * s.width, 1, 3), s.rows,
                   s.width, s.in_stride, s.out_stride, s.skew);
  }
}

TEST(GateEmbedding, Shapes) {
  struct Shape {
    int64_t rows, dim, gate_stride, ple_stride, first, out_stride, skew;
  };
  for (const Shape& s : {Shape{4, 256, 256, 7680, 512, 256, 0}, Shape{2, 1, 3, 5, 4, 2, 0},
                         Shape{3, 250, 256, 1000, 250, 256, 0}, Shape{3, 96, 97, 301, 99, 97, 1},
                         Shape{2, 4104, 4104, 4104, 0, 4104, 0}}) {
    const auto gate = RandomBf16(s.rows * s.gate_stride, 2, 4);
    const auto ple = RandomFloats(s.rows * s.ple_stride, 1, 5);
    DeviceArray<__nv_bfloat16> device_gate(gate, s.skew), out(s.rows * s.out_stride, s.skew);
    DeviceArray<float> device_ple(ple, s.skew);
    GateEmbeddingParams p;
    p.gate = device_gate.data();
    p.gate_stride = s.gate_stride;
    p.ple = device_ple.data();
    p.ple_stride = s.ple_stride;
    p.first = s.first;
    p.out = out.data();
    p.out_stride = s.out_stride;
    p.rows = s.rows;
    p.dim = s.dim;
    TestStream stream;
    ASSERT_EQ(LaunchGateEmbedding(p, stream), cudaSuccess);
    const std::vector<__nv_bfloat16> got = out.Get();
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t i = 0; i < s.out_stride; ++i) {
        const double value = double{Float(got[r * s.out_stride + i])};
        if (i >= s.dim) {
          ASSERT_EQ(value, 0) << "padding";
          continue;
        }
        const Gelu gelu = ReferenceGelu(double{Float(gate[r * s.gate_stride + i])});
        const double e = double{ple[r * s.ple_stride + s.first + i]};
        ASSERT_NEAR(value, gelu.value * e,
                    std::abs(gelu.value * e) * kBf16Store + 2 * gelu.error * std::abs(e))
            << "row " << r << ", column " << i;
      }
    }
  }
}

// tanhf errs by 2 units in the last place, quotient and product by half of one each.
TEST(SoftCap, IsTanhOfTheQuotient) {
  struct Shape {
    int64_t rows, dim, stride, skew;
  };
  for (const Shape& s : {Shape{1, 1, 1, 0}, Shape{3, 2048, 2048, 0}, Shape{2, 2051, 2056, 0},
                         Shape{2, 5000, 5003, 1}}) {
    std::vector<float> x = RandomFloats(s.rows * s.stride, 40, 6);
    x[0] = s.dim == 1 ? 1e-30f : std::numeric_limits<float>::infinity();
    DeviceArray<float> device_x(x, s.skew);
    SoftCapParams p;
    p.x = device_x.data();
    p.stride = s.stride;
    p.rows = s.rows;
    p.dim = s.dim;
    p.cap = 30;
    TestStream stream;
    ASSERT_EQ(LaunchSoftCap(p, stream), cudaSuccess);
    const std::vector<float> got = device_x.Get();
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t i = 0; i < s.stride; ++i) {
        const float before = x[r * s.stride + i];
        const double expected = i < s.dim ? 30 * std::tanh(double{before} / 30) : double{before};
        ASSERT_NEAR(got[r * s.stride + i], expected,
                    i < s.dim ? std::abs(expected) * 3 * 0x1p-23 : 0)
            << "row " << r << ", column " << i;
      }
    }
  }
}

TEST(Activations, RefuseBadSizesAndDoNothingForNoRows) {
  TestStream stream;
  GatedGeluParams gated;
  EXPECT_EQ(LaunchGatedGelu(gated, stream), cudaErrorInvalidValue);
  gated.width = 9;
  gated.out_stride = 8;
  EXPECT_EQ(LaunchGatedGelu(gated, stream), cudaErrorInvalidValue);
  gated.out_stride = 9;
  EXPECT_EQ(LaunchGatedGelu(gated, stream), cudaSuccess);
  GateEmbeddingParams gate;
  EXPECT_EQ(LaunchGateEmbedding(gate, stream), cudaErrorInvalidValue);
  gate.dim = gate.out_stride = 4;
  EXPECT_EQ(LaunchGateEmbedding(gate, stream), cudaSuccess);
  SoftCapParams cap;
  EXPECT_EQ(LaunchSoftCap(cap, stream), cudaErrorInvalidValue);
  cap.dim = 1;
  EXPECT_EQ(LaunchSoftCap(cap, stream), cudaSuccess);
  cap.cap = 0;
  EXPECT_EQ(LaunchSoftCap(cap, stream), cudaErrorInvalidValue);
}

TEST(RoundRows, RoundsOnceAndPads) {
  for (const auto& [rows, dim, skew] :
       {std::array<int64_t, 3>{1, 1, 0}, {3, 54, 0}, {2, 64, 1}, {5, 2048, 0}, {2, 2051, 3}}) {
    const int64_t stride = (dim + 15) / 16 * 16;
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, 100);
    std::vector<float> x(rows * dim);
    for (float& v : x) v = normal(random);
    DeviceArray<float> in(x, skew);
    DeviceArray<__nv_bfloat16> out(rows * stride, skew);
    const RoundRowsParams p{.x = in.data(),
                            .x_stride = dim,
                            .y = out.data(),
                            .y_stride = stride,
                            .rows = rows,
                            .dim = dim};
    TestStream stream;
    ASSERT_EQ(LaunchRoundRows(p, stream), cudaSuccess);
    const std::vector<__nv_bfloat16> got = out.Get();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < stride; ++i) {
        const float expected = i < dim ? RoundToBf16(x[r * dim + i]) : 0.0f;
        ASSERT_EQ(Float(got[r * stride + i]), expected) << "row " << r << " column " << i;
      }
    }
  }
  RoundRowsParams bad;
  bad.rows = 1;
  bad.dim = 8;
  bad.y_stride = 7;
  EXPECT_EQ(LaunchRoundRows(bad, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
