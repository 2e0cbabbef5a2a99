// Rotation tables: the bits of the host's function, which is good to 2^-23.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/device_test_support.h"
#include "kernels/elementwise/rotation.h"
#include "kernels/elementwise/row_ops_cuda.h"

namespace lapidary {
namespace {

void ExpectNearDouble(float angle) {
  const SinCos got = SinCosOfAngle(angle);
  ASSERT_NEAR(got.sine, std::sin(double{angle}), 0x1p-23) << angle;
  ASSERT_NEAR(got.cosine, std::cos(double{angle}), 0x1p-23) << angle;
}

TEST(SinCosOfAngle, IsGoodToTheLastBitsUpTo2To23) {
  for (uint32_t bits = 0; bits <= Bits(0x1p23f); bits += 1009) {
    float angle;
    std::memcpy(&angle, &bits, 4);
    ExpectNearDouble(angle);
    ExpectNearDouble(-angle);
  }
  // Where the reduction cancels most: the floats nearest to the quadrants' ends and middles.
  for (int i = 0; i < 10680707; i += 17) {
    const auto angle = static_cast<float>(i * M_PI_4);
    ExpectNearDouble(angle);
    ExpectNearDouble(std::nextafter(angle, 0.0f));
  }
}

TEST(Rotation, IsTheFunctionOfTheFp32Angle) {
  for (const int pairs : {1, 64, 128}) {
    std::vector<float> frequency;
    for (int i = 0; i < pairs; ++i) {
      frequency.push_back(std::pow(1e4f, -static_cast<float>(i) / 128));
    }
    const std::vector<int32_t> positions = {0, 1, 511, 4096, 131071, 262143, 0x7fffff};
    const auto tokens = static_cast<int64_t>(positions.size());
    DeviceArray<int32_t> device_positions(positions);
    DeviceArray<float> device_frequency(frequency), cos_sin(tokens * 2 * pairs);
    RotationParams p;
    p.positions = device_positions.data();
    p.frequency = device_frequency.data();
    p.cos_sin = cos_sin.data();
    p.tokens = tokens;
    p.pairs = pairs;
    TestStream stream;
    ASSERT_EQ(LaunchRotation(p, stream), cudaSuccess);
    const std::vector<float> got = cos_sin.Get();
    for (int64_t t = 0; t < tokens; ++t) {
      for (int i = 0; i < pairs; ++i) {
        const volatile float angle = static_cast<float>(positions[t]) * frequency[i];
        const SinCos same = SinCosOfAngle(angle);
        const float* row = &got[t * 2 * pairs];
        ASSERT_EQ(Bits(row[i]), Bits(same.cosine)) << "position " << positions[t] << ", pair " << i;
        ASSERT_EQ(Bits(row[pairs + i]), Bits(same.sine));
        ASSERT_NEAR(row[i], std::cos(double{angle}), 0x1p-23);
        ASSERT_NEAR(row[pairs + i], std::sin(double{angle}), 0x1p-23);
      }
    }
  }
  TestStream stream;
  EXPECT_EQ(LaunchRotation({}, stream), cudaErrorInvalidValue);
  RotationParams none;
  none.pairs = 64;
  EXPECT_EQ(LaunchRotation(none, stream), cudaSuccess);
}

}  // namespace
}  // namespace lapidary
