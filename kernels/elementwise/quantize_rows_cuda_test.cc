// Codes and scales against a table of all 256 codes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/device_test_support.h"
#include "kernels/elementwise/row_ops_cuda.h"

namespace lapidary {
namespace {

float FromE4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(8.0f + static_cast<float>(mantissa), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// The code nearest to v, the even one of two; the largest beyond it.
int NearestE4m3(float v) {
  int best = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const double distance = std::abs(double{FromE4m3(code)} - std::abs(double{v}));
    const double least = std::abs(double{FromE4m3(best)} - std::abs(double{v}));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return std::signbit(v) ? best | 0x80 : best;
}

TEST(QuantizeRows, GivesTheNearestCodes) {
  struct Shape {
    int64_t rows, dim, x_stride, codes_stride, skew;
    float spread;
  };
  for (const Shape& s : {Shape{3, 1, 1, 1, 0, 1}, Shape{3, 64, 64, 64, 0, 1},
                         Shape{6, 511, 513, 520, 0, 100}, Shape{2, 5376, 5376, 5376, 0, 1e-3f},
                         Shape{2, 1540, 1545, 1543, 1, 1}, Shape{1, 7000, 7000, 7008, 0, 3}}) {
    auto x = RandomBf16(s.rows * s.x_stride, s.spread, 1);
    if (s.rows > 1) std::fill_n(x.begin() + s.x_stride, s.dim, Bf16(-0.0f));
    if (s.rows > 2) std::fill_n(x.begin() + 2 * s.x_stride, s.dim, Bf16(0x1p-130f));
    DeviceArray<__nv_bfloat16> device_x(x, s.skew);
    DeviceArray<uint8_t> codes(s.rows * s.codes_stride, s.skew);
    DeviceArray<float> scale(s.rows);
    QuantizeRowsParams p;
    p.x = device_x.data();
    p.x_stride = s.x_stride;
    p.codes = codes.data();
    p.codes_stride = s.codes_stride;
    p.scale = scale.data();
    p.rows = s.rows;
    p.dim = s.dim;
    TestStream stream;
    ASSERT_EQ(LaunchQuantizeRows(p, stream), cudaSuccess);
    const std::vector<uint8_t> got = codes.Get();
    const std::vector<float> scales = scale.Get();
    for (int64_t r = 0; r < s.rows; ++r) {
      float largest = 0;
      for (int64_t i = 0; i < s.dim; ++i) {
        largest = std::max(largest, std::abs(Float(x[r * s.x_stride + i])));
      }
      ASSERT_EQ(scales[r], largest < 0x1p-110f ? 1.0f : largest / 448.0f) << "row " << r;
      for (int64_t i = 0; i < s.codes_stride; ++i) {
        const float quotient = i < s.dim ? Float(x[r * s.x_stride + i]) / scales[r] : 0.0f;
        ASSERT_EQ(got[r * s.codes_stride + i], NearestE4m3(quotient))
            << quotient << " in row " << r << ", column " << i;
      }
    }
  }
}

TEST(QuantizeRows, RefusesBadSizesAndDoesNothingForNoRows) {
  TestStream stream;
  QuantizeRowsParams p;
  EXPECT_EQ(LaunchQuantizeRows(p, stream), cudaErrorInvalidValue);
  p.dim = 4;
  EXPECT_EQ(LaunchQuantizeRows(p, stream), cudaErrorInvalidValue);
  p.codes_stride = 4;
  EXPECT_EQ(LaunchQuantizeRows(p, stream), cudaSuccess);
}

}  // namespace
}  // namespace lapidary
