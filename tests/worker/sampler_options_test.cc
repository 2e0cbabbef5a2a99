// Which token: every filter against the reference and its distribution, in every layout.
#include "tests/worker/sampler_harness.h"

namespace lapidary {
namespace {

class SamplerOptions : public testing::TestWithParam<Options> {};

// Spread logits; and logits of few values, where ties straddle every threshold and shard. The
// odds that double and integers part at one draw are about 1e-6.
TEST_P(SamplerOptions, AgreesWithTheReferenceInEveryLayout) {
  constexpr int kRows = 10, kVocab = 3011;
  for (const bool ties : {false, true}) {
    Matrix logits = RandomLogits(kRows, kVocab, 3, 17);
    for (auto& row : logits) {
      for (float& logit : row) logit = ties ? std::round(logit * 0.7f) : logit;
    }
    const std::vector<SampleRow> rows = Rows(kRows, GetParam().params);
    std::vector<TokenId> expected;
    for (int i = 0; i < kRows; ++i) expected.push_back(ReferenceToken(logits[i], rows[i]));
    for (const Layout layout : {Layout{1, 1}, Layout{1, 3}, Layout{2, 1}, Layout{3, 2},
                                Layout{4, 1}, Layout{4, 1, 2000}}) {
      const std::vector<SampledRow> got = SampleWith(logits, rows, layout);
      for (int i = 0; i < kRows; ++i) {
        ASSERT_EQ(got[i].sampled.id, expected[i])
            << "row " << i << ", " << layout.ranks << " ranks, " << layout.threads << " threads"
            << (ties ? ", with ties" : "");
        EXPECT_EQ(got[i].scored.id, -1);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SamplerOptions, testing::ValuesIn(AllOptions()),
                         [](const auto& info) { return std::string(info.param.name); });

// Pearson's statistic of many draws against the wanted distribution.
void ExpectDistribution(const SamplingParams& params, const std::vector<double>& probabilities,
                        int draws = 20000) {
  constexpr int kBatch = 500;
  std::vector<float> logits;
  for (int i = 0; i < 40; ++i) logits.push_back(3.0f * std::sin(1.7f * static_cast<float>(i)));
  std::vector<int> counts(logits.size(), 0);
  for (int first = 0; first < draws; first += kBatch) {
    std::vector<SampleRow> rows = Rows(kBatch, params);
    for (int i = 0; i < kBatch; ++i) rows[i].position = first + i;
    for (const SampledRow& row : SampleWith(Matrix(kBatch, logits), rows, Layout{2, 1, 8})) {
      ++counts[row.sampled.id];
    }
  }
  double statistic = 0;
  int cells = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (probabilities[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is filtered";
      continue;
    }
    const double expected = probabilities[i] * draws;
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++cells;
  }
  // Mean cells - 1, variance 2 (cells - 1): five standard deviations.
  const double freedom = cells - 1;
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom)) << cells << " tokens";
}

std::vector<double> Probabilities(double temperature, size_t keep, double least) {
  std::vector<double> p;
  for (int i = 0; i < 40; ++i) {
    p.push_back(std::exp(3.0 * std::sin(1.7 * i) / temperature));
  }
  std::vector<double> sorted = p;
  std::sort(sorted.rbegin(), sorted.rend());
  const double last = std::max(sorted[keep - 1], least * sorted[0]) * (1 - 1e-6);
  double sum = 0;
  for (double& w : p) sum += w = w >= last ? w : 0;
  for (double& w : p) w /= sum;
  return p;
}

TEST(SamplerDistribution, Temperature) {
  SamplingParams params;
  params.temperature = 1.3f;
  params.seed = 1;
  ExpectDistribution(params, Probabilities(1.3f, 40, 0));
}

TEST(SamplerDistribution, TopK) {
  SamplingParams params;
  params.top_k = 7;
  params.seed = 2;
  ExpectDistribution(params, Probabilities(1, 7, 0));
}

TEST(SamplerDistribution, TopP) {
  SamplingParams params;
  params.top_p = 0.8f;
  params.seed = 3;
  const std::vector<double> all = Probabilities(1, 40, 0);
  std::vector<double> sorted = all;
  std::sort(sorted.rbegin(), sorted.rend());
  size_t keep = 0;
  for (double mass = 0; mass < 0.8; ++keep) mass += sorted[keep];
  ExpectDistribution(params, Probabilities(1, keep, 0), 2500);
}

TEST(SamplerDistribution, MinP) {
  SamplingParams params;
  params.min_p = 0.3f;
  params.seed = 4;
  ExpectDistribution(params, Probabilities(1, 40, 0.3));
}

TEST(SamplerDistribution, ChoicesAreIndependent) {
  // 2000 pairs of choices of one request: as often equal as two independent draws.
  SamplingParams params;
  params.seed = 5;
  const Matrix logits(2000, std::vector<float>{0.0f, 0.0f, 0.0f, 0.0f});
  std::vector<SampleRow> first = Rows(2000, params), second = first;
  for (SampleRow& row : second) row.choice = 1;
  const auto a = SampleWith(logits, first, {}), b = SampleWith(logits, second, {});
  int equal = 0;
  for (int i = 0; i < 2000; ++i) equal += a[i].sampled.id == b[i].sampled.id;
  EXPECT_NEAR(equal, 500, 5 * std::sqrt(2000 * 0.25 * 0.75));
}

TEST(Sampler, ATokenDoesNotDependOnItsCompany) {
  constexpr int kRows = 32, kVocab = 1000;
  const Matrix logits = RandomLogits(kRows, kVocab, 2, 5);
  std::vector<Options> options = AllOptions();
  std::vector<SampleRow> rows;
  for (int i = 0; i < kRows; ++i) {
    rows.push_back(Rows(1, options[i % options.size()].params)[0]);
    rows[i].position = 50 + i;
    rows[i].logits_row = i;
    rows[i].wants_logprob = i % 3 == 0;
    rows[i].top_logprobs = i % 5;
  }
  const std::vector<SampledRow> together = SampleWith(logits, rows, Layout{2, 2});
  for (int i = 0; i < kRows; ++i) {
    SampleRow alone = rows[i];
    alone.logits_row = 0;
    const SampledRow got = SampleWith({logits[i]}, {alone}, Layout{2, 2})[0];
    EXPECT_EQ(got.sampled.id, together[i].sampled.id) << i;
    EXPECT_EQ(got.sampled.logprob, together[i].sampled.logprob) << i;
  }
  std::vector<SampleRow> reversed(rows.rbegin(), rows.rend());
  const std::vector<SampledRow> backwards = SampleWith(logits, reversed, Layout{3, 1});
  for (int i = 0; i < kRows; ++i) {
    EXPECT_EQ(backwards[kRows - 1 - i].sampled.id, together[i].sampled.id) << i;
  }
}

}  // namespace
}  // namespace lapidary
