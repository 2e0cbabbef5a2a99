#include "worker/sampler_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/sampling/token_weight.h"
#include "worker/sampler_filter.h"

namespace lapidary {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(SamplerMath, WeightsAreExpToTheirLastBits) {
  std::vector<float> values;
  for (int i = 0; i < 4000; ++i) values.push_back(-0.01f * static_cast<float>(i));
  std::vector<int64_t> weights(values.size());
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    const Softmax softmax = MakeSoftmax(0.0f, temperature);
    ComputeWeights(values.data(), static_cast<int64_t>(values.size()), softmax, weights.data());
    EXPECT_EQ(weights[0], kWeightOne);
    for (size_t i = 0; i < values.size(); ++i) {
      const double y = double{values[i]} / temperature;
      const double exact = std::exp(y) * static_cast<double>(kWeightOne);
      // y log2(e) is rounded to fp32, twice: its error is 2^-23 |y| log2(e), times ln 2 here.
      EXPECT_NEAR(static_cast<double>(weights[i]), exact, exact * (0x1p-22 * (1 - y)) + 1)
          << values[i];
      EXPECT_EQ(weights[i], WeightOf(values[i], softmax)) << values[i];
    }
  }
}

TEST(SamplerMath, OrderKeysOrder) {
  const float values[] = {-kInfinity, -3e38f, -1.0f, -1e-40f, 0.0f, 1e-40f, 1.0f, 3e38f, kInfinity};
  for (size_t i = 0; i < std::size(values); ++i) {
    EXPECT_EQ(FromOrderKey(OrderKey(values[i])), values[i]);
    if (i > 0) {
      EXPECT_LT(OrderKey(values[i - 1]), OrderKey(values[i]));
    }
  }
  EXPECT_EQ(OrderKey(-0.0f), OrderKey(0.0f));
  EXPECT_LT(OrderKey(kNan), OrderKey(-kInfinity));
}

// What kernels compute, one logit at a time, are the same bits.
TEST(SamplerMath, KernelsHaveTheSameWeightsAndKeys) {
  std::mt19937 random(9);
  std::vector<float> values = {kNan, -kNan, kInfinity, -kInfinity, 0.0f, -0.0f, 1e-40f, -1e-40f};
  for (int i = 0; i < 300000; ++i) values.push_back(-1e-4f * static_cast<float>(i));
  for (int i = 0; i < 300000; ++i) {
    const auto bits = static_cast<uint32_t>(random());
    float any;
    std::memcpy(&any, &bits, 4);
    values.push_back(any);
  }
  std::vector<int64_t> weights(values.size());
  for (const float max : {0.0f, 7.3f, 3e38f, kInfinity}) {
    for (const float temperature : {1e-5f, 0.3f, 1.0f, 77.0f, 1e6f}) {
      const Softmax softmax = MakeSoftmax(max, temperature);
      ComputeWeights(values.data(), std::ssize(values), softmax, weights.data());
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(TokenWeight(values[i], softmax.max, softmax.scale), weights[i])
            << values[i] << ", max " << max << ", temperature " << temperature;
      }
    }
  }
  for (float v : values) {
    ASSERT_EQ(TokenKey(v), OrderKey(v)) << v;
    if (v == v) {
      ASSERT_EQ(ValueOfKey(TokenKey(v)), v);
    }
  }
  EXPECT_EQ(kKeyOfMinusInfinity, OrderKey(-kInfinity));
  EXPECT_EQ(kKeyOfInfinity, OrderKey(kInfinity));
  for (const double top_p : {0.0, 1e-9, 0.3, 0.95, 0.9999999}) {
    for (const int64_t mass : {int64_t{0}, int64_t{1}, kWeightOne, kWeightOne << 18}) {
      EXPECT_EQ(TopPMass(top_p, mass), TopPTarget(top_p, mass));
    }
  }
}

TEST(SamplerMath, VectorsAndRemaindersAgree) {
  std::mt19937 random(6);
  for (const int count : {0, 1, 7, 8, 9, 31, 1000}) {
    std::vector<float> values(count);
    for (float& v : values) v = 0.5f * static_cast<float>(random() % 40);  // with ties
    if (count > 5) values[5] = kNan;
    const Softmax softmax = MakeSoftmax(20.0f, 3.0f);
    const float threshold = 9.0f;
    const int64_t min_weight = WeightOf(11.0f, softmax);
    int64_t above = 0, equal = 0;
    std::vector<float> between;
    for (float v : values) {
      if (v > threshold && WeightOf(v, softmax) >= min_weight) above += WeightOf(v, softmax);
      equal += v == threshold;
      if (v >= 4.0f && v <= 6.5f) between.push_back(v);
    }
    const KeptMass kept = MassAbove(values.data(), count, softmax, threshold, min_weight);
    EXPECT_EQ(kept.above, above) << count;
    EXPECT_EQ(kept.equal, equal) << count;
    std::vector<float> found;
    CollectBetween(values.data(), count, 4.0f, 6.5f, &found);
    EXPECT_EQ(found, between) << count;
  }
}

}  // namespace
}  // namespace lapidary
