// Against double references. One fp32 operation errs by 2^-24 relative; the sums of squares of at
// most 5376 terms by less than 2^-20 (32 partial sums of 168), halved by the root.
#include "kernels/elementwise/elementwise.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/elementwise/rope.h"

namespace lapidary {
namespace {

constexpr double kNormTolerance = 0x1p-20;

std::vector<float> Random(int n, int seed, float scale = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

std::vector<double> NormRef(const std::vector<float>& x, const std::vector<float>& w, double eps) {
  double sum = 0;
  for (const float v : x) sum += double{v} * v;
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = x[i] / std::sqrt(sum / static_cast<double>(x.size()) + eps) * (w.empty() ? 1.0 : w[i]);
  }
  return y;
}

class RowSizes : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, RowSizes,
                         testing::Values(1, 2, 7, 8, 9, 12, 31, 32, 33, 63, 100, 640, 5376));

TEST_P(RowSizes, RmsNorm) {
  const int n = GetParam();
  const auto x = Random(n, 1, 3.0f), w = Random(n, 2);
  std::vector<float> y(n + 1, 77.0f);
  RmsNorm(x.data(), w.data(), n, 1e-6f, y.data());
  const auto expected = NormRef(x, w, 1e-6);
  for (int i = 0; i < n; ++i) {
    EXPECT_NEAR(y[i], expected[i], kNormTolerance * std::abs(expected[i])) << i;
  }
  EXPECT_EQ(y[n], 77.0f);  // nothing is written past the row
  std::vector<float> in_place = x;
  RmsNorm(in_place.data(), nullptr, n, 1e-6f, in_place.data());
  const auto bare = NormRef(x, {}, 1e-6);
  for (int i = 0; i < n; ++i) {
    EXPECT_NEAR(in_place[i], bare[i], kNormTolerance * std::abs(bare[i])) << i;
  }
}

TEST_P(RowSizes, AddNormedAndPair) {
  const int n = GetParam();
  const auto f = Random(n, 3), g = Random(n, 4), w = Random(n, 5), w1 = Random(n, 6),
             w2 = Random(n, 7), x0 = Random(n, 8);
  auto x = x0;
  AddNormed(f.data(), w.data(), n, 1e-6f, 0.75f, x.data());
  const auto normed = NormRef(f, w, 1e-6);
  for (int i = 0; i < n; ++i) {
    const double expected = (x0[i] + normed[i]) * 0.75;
    EXPECT_NEAR(x[i], expected, kNormTolerance * (std::abs(x0[i]) + std::abs(normed[i]))) << i;
  }
  x = x0;
  auto dense = f;
  AddNormedPair(dense.data(), w1.data(), g.data(), w2.data(), w.data(), n, 1e-6f, 0.75f, x.data());
  const auto a = NormRef(f, w1, 1e-6), b = NormRef(g, w2, 1e-6);
  std::vector<double> sum(n);
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += (sum[i] = a[i] + b[i]) * sum[i];
  const double scale = 1 / std::sqrt(squares / n + 1e-6);
  for (int i = 0; i < n; ++i) {
    const double expected = (x0[i] + sum[i] * scale * w[i]) * 0.75;
    // a + b may cancel: the error scales with the parts.
    const double size = std::abs(x0[i]) + (std::abs(a[i]) + std::abs(b[i]) + std::abs(sum[i])) *
                                              scale * std::abs(w[i]);
    EXPECT_NEAR(x[i], expected, 2 * kNormTolerance * size) << i;
  }
}

TEST_P(RowSizes, GatedGeluScaleMixAdd) {
  const int n = GetParam();
  const auto gate = Random(n, 9, 3.0f), up = Random(n, 10);
  auto y = gate;
  GatedGelu(y.data(), up.data(), n);
  for (int i = 0; i < n; ++i) {
    const double v = gate[i];
    // x * sigmoid(2u): the relative precision of the tail matters, so no 1 + tanh here.
    const double u = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
    const double expected = v / (1 + std::exp(-2 * u)) * up[i];
    // Below 1e-36 the exponential is clamped. exp's argument errs by 2^-23 relative, which is
    // |2u| 2^-23 in the result.
    EXPECT_NEAR(y[i], expected, std::abs(expected) * (0x1p-21 + std::abs(2 * u) * 0x1p-22) + 1e-36)
        << v;
  }
  auto z = gate;
  AddScaled(up.data(), 0.3f, n, z.data());
  std::vector<float> mixed(n);
  MixRow(gate.data(), up.data(), 16.0f, 0.70710678f, n, mixed.data());
  auto scaled = gate;
  ScaleRow(scaled.data(), n, 1.5f);
  for (int i = 0; i < n; ++i) {
    EXPECT_EQ(z[i], std::fma(up[i], 0.3f, gate[i]));
    EXPECT_EQ(mixed[i], std::fma(up[i], 16.0f, gate[i]) * 0.70710678f);
    EXPECT_EQ(scaled[i], gate[i] * 1.5f);
  }
}

TEST(ElementwiseTest, GeluGoldens) {
  float gate[] = {-3, -1, -0.5f, 0.5f, 1, 3, 0, -20, 20};
  const float up[] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  const double expected[] = {
      -0.00363739208, -0.158808009, -0.15428599, 0.34571401, 0.841191991, 2.99636261, 0, 0, 20};
  GatedGelu(gate, up, 9);
  for (int i = 0; i < 9; ++i)
    EXPECT_NEAR(gate[i], expected[i], 1e-6 * std::abs(expected[i]) + 1e-12);
}

TEST(ElementwiseTest, SoftCapFollowsTanhAndKeepsOrder) {
  std::vector<float> x;
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<float>(i) * 0.05f);
  auto y = x;
  SoftCap(y.data(), static_cast<int64_t>(y.size()), 30.0f);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(y[i], 30 * std::tanh(double{x[i]} / 30), 30 * 0x1p-22) << x[i];
    if (i > 0) {
      EXPECT_GE(y[i], y[i - 1]);
    }
  }
}

TEST(RopeTest, FrequenciesOfTheReference) {
  const auto full = RopeFrequencies(1e6, 512, 64, 1);
  const auto sliding = RopeFrequencies(1e4, 256, 128, 1);
  EXPECT_NEAR(full[1], 0.947463526, 1e-7);
  EXPECT_NEAR(full[63], 0.0333762469, 1e-8);
  EXPECT_NEAR(sliding[63], 0.0107460783, 1e-9);
  EXPECT_NEAR(sliding[127], 1.07460783e-4, 1e-11);
  EXPECT_NEAR(RopeFrequencies(1e6, 256, 128, 8)[1] * 8, std::pow(1e6, -2.0 / 256), 1e-6);
}

TEST(RopeTest, TablesAtShortAndLongPositions) {
  for (const int pairs : {1, 3, 4, 6, 128}) {
    const auto frequency = RopeFrequencies(1e4, 2 * pairs, pairs, 1);
    std::vector<float> table(2 * pairs);
    for (const int position : {0, 1, 2, 3, 17, 511, 8191, 131071, 262143}) {
      RopeRow(position, frequency.data(), pairs, table.data());
      for (int i = 0; i < pairs; ++i) {
        const double angle = double{static_cast<float>(position) * frequency[i]};
        EXPECT_NEAR(table[i], std::cos(angle), 0x1p-23) << position << " " << i;
        EXPECT_NEAR(table[pairs + i], std::sin(angle), 0x1p-23) << position << " " << i;
      }
    }
  }
}

TEST(RopeTest, RotatesPairsAndLeavesTheRest) {
  for (const int dim : {4, 12, 64, 256}) {
    for (const int pairs : {dim / 2, dim / 4, 1}) {
      const auto frequency = RopeFrequencies(1e4, dim, pairs, 1);
      std::vector<float> table(2 * pairs);
      RopeRow(29, frequency.data(), pairs, table.data());
      const auto x = Random(dim, dim + pairs);
      auto y = x;
      Rotate(table.data(), pairs, dim, y.data());
      for (int i = 0; i < dim / 2; ++i) {
        const double a = x[i], b = x[i + dim / 2];
        const double angle = i < pairs ? double{29.0f * frequency[i]} : 0.0;
        const double tolerance = 4 * 0x1p-23 * (std::abs(a) + std::abs(b));
        EXPECT_NEAR(y[i], a * std::cos(angle) - b * std::sin(angle), tolerance);
        EXPECT_NEAR(y[i + dim / 2], b * std::cos(angle) + a * std::sin(angle), tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace lapidary
