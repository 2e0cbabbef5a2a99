// Selection against a full sort and sums against double, on rows with ties, masks and NaN; the same
// bits for every instruction set, thread count and cut of the row.
#include "kernels/sampling/topk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/sampling/internal/row_kernels.h"

namespace lapidary {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum Kind { kRandom, kTies, kAscending, kEqual, kMasked, kAllMasked, kKinds };

std::vector<float> Row(int64_t n, Kind kind, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(-5, 4);
  std::vector<float> z(n);
  for (float& v : z) v = normal(rng);
  if (kind == kTies) {
    for (float& v : z) v = std::round(v);
  }
  if (kind == kAscending) std::sort(z.begin(), z.end());
  if (kind == kEqual) std::fill(z.begin(), z.end(), 1.0f);
  if (kind == kMasked) {
    for (float& v : z) v = rng() % 3 == 0 ? -kInfinity : v;
  }
  if (kind == kAllMasked) std::fill(z.begin(), z.end(), -kInfinity);
  return z;
}

std::vector<Candidate> SortedReference(const std::vector<float>& z, int32_t first_id, int k) {
  std::vector<Candidate> all;
  for (size_t i = 0; i < z.size(); ++i) {
    if (z[i] > -kInfinity) all.push_back({z[i], first_id + static_cast<int32_t>(i)});
  }
  std::sort(all.begin(), all.end(), Better);
  if (std::ssize(all) > k) all.resize(k);
  return all;
}

bool Same(const std::vector<Candidate>& a, const std::vector<Candidate>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto& x, auto& y) {
           return x.id == y.id && x.logit == y.logit;
         });
}

TEST(TopK, AgreesWithAFullSort) {
  for (int64_t n : {1, 15, 64, 100, 1000, 4099, 70000}) {
    for (int kind = 0; kind < kKinds; ++kind) {
      const std::vector<float> z = Row(n, static_cast<Kind>(kind), 5);
      for (int k : {0, 1, 2, 64, 1000, 1024}) {
        std::vector<Candidate> best;
        SelectTopK(z.data(), n, 100, k, best);
        EXPECT_TRUE(Same(best, SortedReference(z, 100, k)))
            << "n " << n << " kind " << kind << " k " << k;
      }
    }
  }
}

TEST(TopK, IgnoresNan) {
  std::vector<float> z = Row(3000, kRandom, 6);
  for (size_t i = 0; i < z.size(); i += 7) z[i] = std::nanf("");
  for (int k : {1, 50}) {
    std::vector<Candidate> best;
    SelectTopK(z.data(), 3000, 0, k, best);
    EXPECT_TRUE(Same(best, SortedReference(z, 0, k))) << k;
  }
}

double ReferenceLogSumExp(const std::vector<float>& z, double inverse_temperature) {
  const double max = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (float v : z) sum += std::exp((v - max) * inverse_temperature);
  return max * inverse_temperature + std::log(sum);
}

TEST(SumExp, AgreesWithDouble) {
  for (int64_t n : {1, 15, 17, 4096, 4097, 70000}) {
    for (Kind kind : {kRandom, kAscending, kEqual, kMasked}) {
      const std::vector<float> z = Row(n, kind, 9);
      for (float inverse_temperature : {1.0f, 0.25f, 10.0f}) {
        const ShardNorm norm = SumExp(z.data(), n, inverse_temperature);
        if (norm.max == -kInfinity) continue;  // one masked token
        EXPECT_EQ(norm.max, *std::max_element(z.begin(), z.end()));
        // Each term: the fp32 argument, |x| <= 87, rounds twice by 2^-24 of it, and exp by 2 ulp;
        // but terms weigh e^x, and x e^x <= 1/e: 2^-24 * (2 * 87 + 4) bounds it for any row.
        EXPECT_NEAR(LogSumExp(norm, inverse_temperature),
                    ReferenceLogSumExp(z, inverse_temperature), 178 * 0x1p-24)
            << "n " << n << " kind " << kind;
      }
    }
  }
}

TEST(SumExp, MaskedRowsHaveNoMassAndNanShows) {
  const std::vector<float> masked(5000, -kInfinity);
  const ShardNorm norm = SumExp(masked.data(), 5000, 1.0f);
  EXPECT_EQ(norm.max, -kInfinity);
  EXPECT_EQ(norm.sum, 0.0);
  EXPECT_EQ(LogSumExp(norm, 1.0f), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(SumExp(nullptr, 0, 1.0f).sum, 0.0);
  for (std::vector<float> z : {Row(5000, kRandom, 1), masked}) {
    z[4999] = std::nanf("");
    EXPECT_TRUE(std::isnan(SumExp(z.data(), 5000, 1.0f).sum));
  }
}

// Shards cut at chunks merge to the same bits as the whole row, and an empty shard changes nothing.
TEST(SumExp, ShardsMerge) {
  const std::vector<float> z = Row(30000, kRandom, 3);
  const ShardNorm whole = SumExp(z.data(), 30000, 0.7f);
  const ShardNorm a = SumExp(z.data(), 13000, 0.7f), b = SumExp(z.data() + 13000, 17000, 0.7f);
  const ShardNorm merged = Merge(Merge(a, ShardNorm(), 0.7f), b, 0.7f);
  EXPECT_EQ(merged.max, whole.max);
  EXPECT_NEAR(merged.sum / whole.sum, 1.0, 1e-7);  // fp32 arguments against other chunk maxima
  const ShardNorm same = Merge(a, ShardNorm(), 0.7f);
  EXPECT_EQ(same.sum, a.sum);
}

TEST(Tail, CountsAndCollectsAtLeast) {
  for (Kind kind : {kRandom, kTies, kMasked}) {
    const std::vector<float> z = Row(9001, kind, 4);
    const float max = *std::max_element(z.begin(), z.end());
    for (float threshold : {-100.0f, -5.0f, 3.0f, max, 1000.0f}) {
      int64_t count = 0;
      double mass = 0;
      for (float v : z) {
        if (v < threshold) continue;
        ++count;
        mass += std::exp((double{v} - max) * 0.5);
      }
      const TailMass tail = MassAtLeast(z.data(), 9001, threshold, max, 0.5f);
      EXPECT_EQ(tail.count, count) << threshold;
      EXPECT_NEAR(tail.mass, mass, mass * 178 * 0x1p-24);
      std::vector<Candidate> found;
      EXPECT_TRUE(CollectAtLeast(z.data(), 9001, 7, threshold, 9001, found));
      ASSERT_EQ(std::ssize(found), count);
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_EQ(found[i].logit, z[found[i].id - 7]);
        EXPECT_TRUE(i == 0 || found[i - 1].id < found[i].id);
      }
      if (count < 2) continue;
      EXPECT_FALSE(CollectAtLeast(z.data(), 9001, 7, threshold, count - 1, found));
      EXPECT_EQ(std::ssize(found), count - 1);
    }
  }
}

TEST(SelectRows, TheSameForEveryTeam) {
  const int64_t n = 262144;
  std::vector<std::vector<float>> data;
  for (int r = 0; r < 3; ++r) data.push_back(Row(n, r == 1 ? kTies : kRandom, 20 + r));
  for (int threads : {1, 2, 5}) {
    const auto team = ThreadTeam::Create(threads, {});
    for (size_t rows : {size_t{1}, size_t{3}}) {
      std::vector<RowSelection> selections(rows);
      for (size_t r = 0; r < rows; ++r) {
        selections[r] = {.logits = data[r].data(),
                         .n = n - 5 * static_cast<int64_t>(r),
                         .first_id = 1000,
                         .top_k = r == 0 ? 40 : 1,
                         .wants_norm = r != 1};
      }
      SelectRows(*team, selections);
      for (const RowSelection& s : selections) {
        std::vector<Candidate> best;
        SelectTopK(s.logits, s.n, s.first_id, s.top_k, best);
        EXPECT_TRUE(Same(s.best, best));
        if (!s.wants_norm) continue;
        const ShardNorm norm = SumExp(s.logits, s.n, 1.0f);
        EXPECT_EQ(norm.max, s.norm.max);
        EXPECT_EQ(norm.sum, s.norm.sum);
      }
    }
  }
  std::vector<RowSelection> none;
  SelectRows(*ThreadTeam::Create(2, {}), none);
}

TEST(RowKernels, InstructionSetsGiveTheSameBits) {
  if (!__builtin_cpu_supports("avx512dq")) GTEST_SKIP() << "no AVX-512 here";
  for (int64_t n : {1, 16, 100, 4096, 4111}) {
    for (Kind kind : {kRandom, kTies, kMasked}) {
      const std::vector<float> z = Row(n, kind, 2);
      EXPECT_EQ(kRowKernelsAvx2.max(z.data(), n), kRowKernelsAvx512.max(z.data(), n));
      EXPECT_EQ(kRowKernelsAvx2.arg_max(z.data(), n), kRowKernelsAvx512.arg_max(z.data(), n));
      for (float threshold : {-kInfinity, -4.0f}) {
        int64_t counts[2];
        EXPECT_EQ(kRowKernelsAvx2.sum_exp(z.data(), n, threshold, 12.0f, 0.3f, &counts[0]),
                  kRowKernelsAvx512.sum_exp(z.data(), n, threshold, 12.0f, 0.3f, &counts[1]));
        EXPECT_EQ(counts[0], counts[1]);
        std::vector<float> values[2];
        std::vector<int64_t> indices[2];
        for (int i = 0; i < 2; ++i) {
          values[i].resize(n + 64);
          indices[i].resize(n + 64);
          counts[i] = 0;
          const RowKernels& kernels = i == 0 ? kRowKernelsAvx2 : kRowKernelsAvx512;
          EXPECT_EQ(kernels.collect_above(z.data(), 0, n, threshold, values[i].data(),
                                          indices[i].data(), &counts[i], n),
                    n);
        }
        EXPECT_EQ(counts[0], counts[1]);
        EXPECT_EQ(indices[0], indices[1]);
        EXPECT_EQ(values[0], values[1]);
      }
    }
  }
}

}  // namespace
}  // namespace lapidary
