// The norms against double precision, for every alignment, width and kind of output.
//
// Tolerance of a norm in fp32. The squares are positive; on the way to the sum one passes through
// at most 8 fmas for each unit of its thread, 10 butterflies and a division, each 2^-24 of it; the
// root halves that. rsqrtf errs by 2^-22, the two products by 2^-24 each. So with u units a thread
// (8 u + 11) / 2 + 6 roundings: below 2^-19 up to 6144 columns (u <= 2), 2^-17 up to 65536. A bf16
// store errs by 2^-8 of the value: neighbours differ by 2^-7.
#include "kernels/elementwise/rms_norm_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/device_test_support.h"

namespace lapidary {
namespace {

constexpr float kEps = 1e-6f;

double NormTolerance(int64_t dim) { return dim <= 6144 ? 0x1p-19 : 0x1p-17; }

std::vector<double> ReferenceNorm(const double* x, const float* w, int64_t dim) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += x[i] * x[i];
  const double scale = 1 / std::sqrt(sum / static_cast<double>(dim) + double{kEps});
  std::vector<double> y(dim);
  for (int64_t i = 0; i < dim; ++i) y[i] = x[i] * scale * (w == nullptr ? 1.0 : double{w[i]});
  return y;
}

template <class T>
std::vector<double> Doubles(const std::vector<T>& values, int64_t begin, int64_t count) {
  std::vector<double> d(count);
  for (int64_t i = 0; i < count; ++i) d[i] = double{Float(values[begin + i])};
  return d;
}

struct Shape {
  int64_t rows, dim, x_stride, y_stride;
  int64_t skew;  // elements before the first
};

void PrintTo(const Shape& s, std::ostream* os) {
  *os << s.rows << " x " << s.dim << ", strides " << s.x_stride << ", " << s.y_stride << ", skew "
      << s.skew;
}

class RmsNormTest : public testing::TestWithParam<Shape> {};

constexpr Shape kShapes[] = {
    {1, 1, 1, 1, 0},          {3, 7, 9, 8, 0},          {5, 256, 256, 256, 0},
    {9, 256, 256, 264, 0},    {4, 511, 512, 512, 0},    {2, 512, 512, 512, 1},
    {3, 513, 516, 520, 0},    {2, 1536, 1536, 1536, 0}, {3, 2816, 5632, 2816, 0},
    {2, 3840, 3841, 3845, 0}, {2, 5376, 5376, 5376, 0}, {1, 5376, 5376, 5384, 3},
    {1, 6144, 6144, 6144, 0}, {2, 6152, 6152, 6160, 0}, {1, 21504, 21504, 21504, 0},
};

TEST_P(RmsNormTest, Bf16) {
  const Shape s = GetParam();
  const std::vector<float> x = RandomFloats(s.rows * s.x_stride, 3, 1);
  const std::vector<float> w = RandomFloats(s.dim, 1, 2);
  DeviceArray<float> device_x(x, s.skew), device_w(w, s.skew);
  DeviceArray<__nv_bfloat16> y(s.rows * s.y_stride, s.skew);
  RmsNormParams p;
  p.x = device_x.data();
  p.x_stride = s.x_stride;
  p.w = device_w.data();
  p.rows = s.rows;
  p.dim = s.dim;
  p.y_bf16 = y.data();
  p.y_stride = s.y_stride;
  TestStream stream;
  ASSERT_EQ(LaunchRmsNorm(p, stream), cudaSuccess);
  const std::vector<__nv_bfloat16> got = y.Get();
  for (int64_t r = 0; r < s.rows; ++r) {
    const auto row = Doubles(x, r * s.x_stride, s.dim);
    const auto expected = ReferenceNorm(row.data(), w.data(), s.dim);
    for (int64_t i = 0; i < s.y_stride; ++i) {
      const double value = double{Float(got[r * s.y_stride + i])};
      if (i >= s.dim) {
        ASSERT_EQ(value, 0) << "padding " << i << " of row " << r;
        continue;
      }
      ASSERT_NEAR(value, expected[i], std::abs(expected[i]) * (0x1p-8 + 2 * NormTolerance(s.dim)))
          << "row " << r << ", column " << i;
    }
  }
}

TEST_P(RmsNormTest, Fp32OfChosenRowsWithoutWeights) {
  const Shape s = GetParam();
  const std::vector<float> x = RandomFloats(s.rows * s.x_stride, 0.01f, 3);
  std::vector<int32_t> row_of;
  for (int64_t r = 0; r < s.rows; ++r) row_of.push_back(static_cast<int32_t>(s.rows - 1 - r));
  row_of.push_back(0);  // a row twice
  const auto rows = static_cast<int64_t>(row_of.size());
  DeviceArray<float> device_x(x, s.skew), y(rows * s.y_stride, s.skew);
  DeviceArray<int32_t> device_row_of(row_of);
  RmsNormParams p;
  p.x = device_x.data();
  p.x_stride = s.x_stride;
  p.row_of = device_row_of.data();
  p.rows = rows;
  p.dim = s.dim;
  p.y_fp32 = y.data();
  p.y_stride = s.y_stride;
  TestStream stream;
  ASSERT_EQ(LaunchRmsNorm(p, stream), cudaSuccess);
  const std::vector<float> got = y.Get();
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = Doubles(x, row_of[r] * s.x_stride, s.dim);
    const auto expected = ReferenceNorm(row.data(), nullptr, s.dim);
    for (int64_t i = 0; i < s.y_stride; ++i) {
      const double value = double{got[r * s.y_stride + i]};
      const double wanted = i < s.dim ? expected[i] : 0;
      ASSERT_NEAR(value, wanted, std::abs(wanted) * NormTolerance(s.dim))
          << "row " << r << ", column " << i;
    }
  }
}

float FromE4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(8.0f + static_cast<float>(mantissa), exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

TEST_P(RmsNormTest, E4m3) {
  const Shape s = GetParam();
  std::vector<float> x = RandomFloats(s.rows * s.x_stride, 3, 4);
  if (s.rows > 1) std::fill_n(x.begin(), s.dim, 0.0f);
  const std::vector<float> w = RandomFloats(s.dim, 1, 5);
  DeviceArray<float> device_x(x, s.skew), device_w(w, s.skew), scale(s.rows);
  DeviceArray<uint8_t> y(s.rows * s.y_stride, s.skew);
  RmsNormParams p;
  p.x = device_x.data();
  p.x_stride = s.x_stride;
  p.w = device_w.data();
  p.rows = s.rows;
  p.dim = s.dim;
  p.y_e4m3 = y.data();
  p.y_scale = scale.data();
  p.y_stride = s.y_stride;
  TestStream stream;
  ASSERT_EQ(LaunchRmsNorm(p, stream), cudaSuccess);
  const std::vector<uint8_t> got = y.Get();
  const std::vector<float> scales = scale.Get();
  for (int64_t r = 0; r < s.rows; ++r) {
    const auto row = Doubles(x, r * s.x_stride, s.dim);
    const auto expected = ReferenceNorm(row.data(), w.data(), s.dim);
    double largest = 0;
    for (double v : expected) largest = std::max(largest, std::abs(v));
    const double wanted = largest > 0 ? largest / 448 : 1;
    ASSERT_NEAR(scales[r], wanted, wanted * (NormTolerance(s.dim) + 0x1p-24)) << "row " << r;
    for (int64_t i = 0; i < s.y_stride; ++i) {
      const double quotient = i < s.dim ? expected[i] / scales[r] : 0;
      // Half of the distance to the next code: 2^-4 of a normal number, 2^-10 below 2^-6.
      const double half = std::max(std::abs(quotient) * 0x1p-4, 0x1p-10);
      ASSERT_NEAR(FromE4m3(got[r * s.y_stride + i]), quotient, i < s.dim ? half * (1 + 0x1p-14) : 0)
          << "row " << r << ", column " << i;
    }
  }
}

TEST_P(RmsNormTest, AddNormed) {
  const Shape s = GetParam();
  const std::vector<float> x = RandomFloats(s.rows * s.x_stride, 5, 6);
  const std::vector<float> w = RandomFloats(s.dim, 1, 7);
  const std::vector<__nv_bfloat16> f = RandomBf16(s.rows * s.y_stride, 0.3f, 8);
  DeviceArray<float> device_x(x, s.skew), device_w(w, s.skew);
  DeviceArray<__nv_bfloat16> device_f(f, s.skew);
  AddNormedParams p;
  p.f = device_f.data();
  p.f_stride = s.y_stride;
  p.w = device_w.data();
  p.x = device_x.data();
  p.x_stride = s.x_stride;
  p.rows = s.rows;
  p.dim = s.dim;
  p.scalar = 0.37f;
  TestStream stream;
  ASSERT_EQ(LaunchAddNormed(p, stream), cudaSuccess);
  const std::vector<float> got = device_x.Get();
  for (int64_t r = 0; r < s.rows; ++r) {
    const auto row = Doubles(f, r * s.y_stride, s.dim);
    const auto normed = ReferenceNorm(row.data(), w.data(), s.dim);
    for (int64_t i = 0; i < s.x_stride; ++i) {
      const double before = double{x[r * s.x_stride + i]};
      const float value = got[r * s.x_stride + i];
      if (i >= s.dim) {
        ASSERT_EQ(value, before) << "beyond the row " << r;
        continue;
      }
      const double expected = (before + normed[i]) * double{p.scalar};
      const double size = (std::abs(before) + std::abs(normed[i])) * double{p.scalar};
      ASSERT_NEAR(value, expected, size * (NormTolerance(s.dim) + 0x1p-23))
          << "row " << r << ", column " << i;
    }
  }
}

TEST_P(RmsNormTest, AddNormedPair) {
  const Shape s = GetParam();
  const std::vector<float> x = RandomFloats(s.rows * s.x_stride, 5, 9);
  const std::vector<float> w1 = RandomFloats(s.dim, 1, 10), w2 = RandomFloats(s.dim, 1, 11),
                           w = RandomFloats(s.dim, 1, 12);
  const std::vector<__nv_bfloat16> dense = RandomBf16(s.rows * s.y_stride, 0.3f, 13);
  const std::vector<__nv_bfloat16> experts = RandomBf16(s.rows * s.y_stride, 20, 14);
  DeviceArray<float> device_x(x, s.skew), device_w1(w1), device_w2(w2), device_w(w, s.skew);
  DeviceArray<__nv_bfloat16> device_dense(dense, s.skew), device_experts(experts, s.skew);
  AddNormedPairParams p;
  p.dense = device_dense.data();
  p.experts = device_experts.data();
  p.f_stride = s.y_stride;
  p.w_dense = device_w1.data();
  p.w_experts = device_w2.data();
  p.w = device_w.data();
  p.x = device_x.data();
  p.x_stride = s.x_stride;
  p.rows = s.rows;
  p.dim = s.dim;
  p.scalar = 1.7f;
  TestStream stream;
  ASSERT_EQ(LaunchAddNormedPair(p, stream), cudaSuccess);
  const std::vector<float> got = device_x.Get();
  for (int64_t r = 0; r < s.rows; ++r) {
    const auto a = Doubles(dense, r * s.y_stride, s.dim);
    const auto b = Doubles(experts, r * s.y_stride, s.dim);
    const auto g1 = ReferenceNorm(a.data(), w1.data(), s.dim);
    const auto g2 = ReferenceNorm(b.data(), w2.data(), s.dim);
    std::vector<double> g(s.dim), sizes(s.dim);
    for (int64_t i = 0; i < s.dim; ++i) {
      g[i] = g1[i] + g2[i];
      sizes[i] = std::abs(g1[i]) + std::abs(g2[i]);
    }
    const auto normed = ReferenceNorm(g.data(), w.data(), s.dim);
    for (int64_t i = 0; i < s.x_stride; ++i) {
      const double before = double{x[r * s.x_stride + i]};
      const float value = got[r * s.x_stride + i];
      if (i >= s.dim) {
        ASSERT_EQ(value, before) << "beyond the row " << r;
        continue;
      }
      const double expected = (before + normed[i]) * double{p.scalar};
      // g errs by its two norms' errors, which may cancel in g but not in its error; the second
      // norm scales that (and its own scale's error, as much again) along.
      const double scale = g[i] == 0 ? 0 : std::abs(normed[i] / g[i]);
      const double error = 3 * NormTolerance(s.dim) * (sizes[i] * scale + std::abs(normed[i])) +
                           0x1p-23 * (std::abs(before) + std::abs(normed[i]));
      ASSERT_NEAR(value, expected, error * double{p.scalar}) << "row " << r << ", column " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RmsNormTest, testing::ValuesIn(kShapes));

TEST(RmsNorm, ARowDoesNotDependOnItsCompany) {
  constexpr int64_t kRows = 7;
  for (const int64_t dim : {int64_t{320}, int64_t{2816}}) {
    const std::vector<float> x = RandomFloats(kRows * dim, 1, 15);
    DeviceArray<float> device_x(x), together(kRows * dim), alone(dim);
    RmsNormParams p;
    p.x = device_x.data();
    p.x_stride = p.y_stride = p.dim = dim;
    p.rows = kRows;
    p.y_fp32 = together.data();
    TestStream stream;
    ASSERT_EQ(LaunchRmsNorm(p, stream), cudaSuccess);
    p.rows = 1;
    p.x = device_x.data() + 4 * dim;
    p.y_fp32 = alone.data();
    ASSERT_EQ(LaunchRmsNorm(p, stream), cudaSuccess);
    const std::vector<float> all = together.Get(), one = alone.Get();
    for (int64_t i = 0; i < dim; ++i) ASSERT_EQ(Bits(all[4 * dim + i]), Bits(one[i])) << i;
  }
}

TEST(RmsNorm, RefusesBadSizesAndDoesNothingForNoRows) {
  DeviceArray<float> x(8), y(8);
  RmsNormParams p;
  p.x = x.data();
  p.y_fp32 = y.data();
  p.x_stride = p.y_stride = p.dim = 8;
  TestStream stream;
  EXPECT_EQ(LaunchRmsNorm(p, stream), cudaSuccess);  // rows == 0
  p.rows = 1;
  p.y_stride = 7;
  EXPECT_EQ(LaunchRmsNorm(p, stream), cudaErrorInvalidValue);
  p.y_stride = 8;
  p.dim = 0;
  EXPECT_EQ(LaunchRmsNorm(p, stream), cudaErrorInvalidValue);
  p.dim = 8;
  p.y_fp32 = nullptr;
  EXPECT_EQ(LaunchRmsNorm(p, stream), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchAddNormed({}, stream), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchAddNormedPair({}, stream), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
