#include "worker/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

#include "kernels/sampling/penalties.h"
#include "kernels/sampling/philox.h"
#include "worker/sampler_math.h"
#include "worker/stream.h"

namespace lapidary {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Runs every thread's share, one after the other: what is computed depends on the split alone.
class SerialTeam final : public ThreadTeam {
 public:
  explicit SerialTeam(int threads) : threads_(threads) {}
  int size() const override { return threads_; }
  void Run(const std::function<void(int)>& work) override {
    for (int thread = 0; thread < threads_; ++thread) work(thread);
  }

 private:
  const int threads_;
};

struct Layout {
  int ranks = 1;
  int threads = 1;
  int64_t unit = 32;  // shards are whole units
};

using Matrix = std::vector<std::vector<float>>;  // [rows][vocab]

// What every rank answers; they must agree, in every bit.
std::vector<SampledRow> SampleWith(const Matrix& logits, const std::vector<SampleRow>& rows,
                                   Layout layout) {
  const auto vocab = static_cast<int64_t>(logits[0].size());
  auto comms = CreateInprocCommunicators(layout.ranks);
  std::vector<std::vector<SampledRow>> results(layout.ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < layout.ranks; ++r) {
    threads.emplace_back([&, r] {
      const int64_t units = (vocab + layout.unit - 1) / layout.unit;
      LogitsView view;
      view.vocab.begin = std::min(vocab, units * r / layout.ranks * layout.unit);
      view.vocab.end = std::min(vocab, units * (r + 1) / layout.ranks * layout.unit);
      view.rows = static_cast<int64_t>(logits.size());
      view.stride = view.vocab.size() + 5;  // rows need not touch
      std::vector<float> shard(view.rows * view.stride, kNan);
      for (int64_t row = 0; row < view.rows; ++row) {
        std::copy(logits[row].begin() + view.vocab.begin, logits[row].begin() + view.vocab.end,
                  shard.begin() + row * view.stride);
      }
      view.data = shard.data();
      SerialTeam team(layout.threads);
      const std::unique_ptr<Sampler> sampler = Sampler::Create(team, *comms[r], vocab);
      const std::unique_ptr<Stream> stream = CreateCpuStream();
      sampler->Sample(view, rows, *stream, &results[r]);
      const absl::Status status = stream->Synchronize();
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int r = 1; r < layout.ranks; ++r) {
    EXPECT_EQ(results[r].size(), results[0].size());
    for (size_t i = 0; i < results[0].size(); ++i) {
      const SampledRow &a = results[0][i], &b = results[r][i];
      EXPECT_EQ(a.sampled.id, b.sampled.id) << "rank " << r << ", row " << i;
      EXPECT_EQ(a.sampled.logprob, b.sampled.logprob);
      EXPECT_EQ(a.scored.logprob, b.scored.logprob);
      EXPECT_EQ(a.sampled.top.size(), b.sampled.top.size());
    }
  }
  return results[0];
}

Matrix RandomLogits(int rows, int vocab, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  Matrix logits(rows, std::vector<float>(vocab));
  for (auto& row : logits) {
    for (float& logit : row) logit = normal(random);
  }
  return logits;
}

// A row for every row of logits, with one set of parameters.
std::vector<SampleRow> Rows(int count, const SamplingParams& params,
                            const TokenCounts* counts = nullptr) {
  std::vector<SampleRow> rows(count);
  for (int i = 0; i < count; ++i) {
    rows[i].logits_row = i;
    rows[i].samples = true;
    rows[i].params = &params;
    rows[i].counts = counts;
    rows[i].position = 100 + i;
  }
  return rows;
}

// The plain reference: sorts everything, adds up in double.
TokenId ReferenceToken(std::vector<float> logits, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  for (const auto& [id, bias] : p.logit_bias) logits[id] += bias;
  for (size_t id = 0; id < logits.size() && row.counts != nullptr; ++id) {
    const auto in_output = row.counts->output.find(static_cast<TokenId>(id));
    const int32_t count = in_output == row.counts->output.end() ? 0 : in_output->second;
    const Penalties penalties{p.repetition_penalty, p.presence_penalty, p.frequency_penalty};
    logits[id] = ApplyPenalties(logits[id], penalties,
                                row.counts->prompt.contains(static_cast<TokenId>(id)), count);
  }
  for (TokenId id : p.suppressed) logits[id] = -kInfinity;
  if (row.generated < p.min_tokens) {
    for (TokenId id : p.stop_ids) logits[id] = -kInfinity;
  }
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  if (p.temperature == 0) return order[0];
  const double max = logits[order[0]];
  const auto weight = [&](TokenId id) {
    return std::exp((double{logits[id]} - max) / double{p.temperature});
  };
  if (p.top_k > 0 && p.top_k < static_cast<int>(order.size())) order.resize(p.top_k);
  double mass = 0;
  for (TokenId id : order) mass += weight(id);
  std::vector<TokenId> kept;
  double kept_mass = 0;
  for (TokenId id : order) {
    if (!kept.empty() && (kept_mass >= double{p.top_p} * mass || weight(id) < p.min_p)) break;
    kept.push_back(id);
    kept_mass += weight(id);
  }
  std::sort(kept.begin(), kept.end());
  const uint64_t bits =
      UniformBits(p.seed, static_cast<uint32_t>(row.position), row.choice, RandomPurpose::kSample);
  double point = std::ldexp(static_cast<double>(bits), -64) * kept_mass;
  for (TokenId id : kept) {
    if (point < weight(id)) return id;
    point -= weight(id);
  }
  return kept.back();
}

struct Options {
  const char* name;
  SamplingParams params;
};

std::vector<Options> AllOptions() {
  std::vector<Options> all;
  const auto add = [&](const char* name, float temperature, int top_k, float top_p, float min_p) {
    Options options{name, {}};
    options.params.temperature = temperature;
    options.params.top_k = top_k;
    options.params.top_p = top_p;
    options.params.min_p = min_p;
    options.params.seed = 0x123456789abcdefu;
    all.push_back(options);
  };
  add("greedy", 0, 0, 1, 0);
  add("greedy_ignores_filters", 0, 5, 0.5f, 0.1f);
  add("plain", 1, 0, 1, 0);
  add("plain_hot", 1.7f, 0, 1, 0);
  add("plain_cold", 0.3f, 0, 1, 0);
  add("top_k_1", 1, 1, 1, 0);
  add("top_k_2", 1, 2, 1, 0);
  add("top_k_64", 1, 64, 1, 0);
  add("top_k_256", 2, 256, 1, 0);
  add("top_k_257", 2, 257, 1, 0);
  add("top_k_1500", 3, 1500, 1, 0);
  add("top_k_beyond_the_vocabulary", 3, 100000, 1, 0);
  add("top_p", 1, 0, 0.9f, 0);
  add("top_p_flat", 10, 0, 0.83f, 0);
  add("top_p_tiny", 1, 0, 1e-6f, 0);
  add("top_p_zero", 1, 0, 0, 0);
  add("min_p", 1, 0, 1, 0.05f);
  add("min_p_one", 1, 0, 1, 1);
  add("gemma", 1, 64, 0.95f, 0);
  add("gemma_hot", 4, 64, 0.95f, 0);
  add("top_k_top_p_min_p", 2, 40, 0.8f, 0.03f);
  add("top_p_min_p", 3, 0, 0.8f, 0.01f);
  add("large_top_k_top_p", 5, 1000, 0.7f, 0);
  add("large_top_k_top_p_min_p", 5, 1000, 0.9f, 0.2f);
  return all;
}

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

TEST(Sampler, GreedyTakesTheLowerIdOfEquals) {
  std::vector<float> logits(200, 1.0f);
  logits[67] = logits[130] = logits[199] = 5.0f;
  SamplingParams params;
  params.temperature = 0;
  for (const Layout layout : {Layout{1, 1}, Layout{4, 1}, Layout{2, 3}}) {
    EXPECT_EQ(SampleWith({logits}, Rows(1, params), layout)[0].sampled.id, 67);
  }
}

TEST(Sampler, TheSeedDecides) {
  const Matrix logits(1, std::vector<float>(1000, 0.0f));
  SamplingParams params;
  std::vector<TokenId> tokens;
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}, uint64_t{1} << 40}) {
    params.seed = seed;
    tokens.push_back(SampleWith(logits, Rows(1, params), {})[0].sampled.id);
    EXPECT_EQ(SampleWith(logits, Rows(1, params), {})[0].sampled.id, tokens.back());
  }
  std::sort(tokens.begin(), tokens.end());
  EXPECT_EQ(std::unique(tokens.begin(), tokens.end()), tokens.end());
}

// What changes the logits: greedy shows which token is the best afterwards.
struct EditCase {
  const char* name;
  std::function<void(SamplingParams&, TokenCounts&, SampleRow&)> set;
  TokenId expected;  // of logits 5, 4, -1, 3 at ids 0, 40, 80, 120 and -9 elsewhere
};

class SamplerEdits : public testing::TestWithParam<EditCase> {};

TEST_P(SamplerEdits, TheBestTokenAfterwards) {
  std::vector<float> logits(160, -9.0f);
  logits[0] = 5;
  logits[40] = 4;
  logits[80] = -1;
  logits[120] = 3;
  SamplingParams params;
  params.temperature = 0;
  TokenCounts counts;
  SampleRow row = Rows(1, params, &counts)[0];
  row.wants_logprob = true;
  GetParam().set(params, counts, row);
  double sum = 0;
  for (float logit : logits) sum += std::exp(double{logit});
  for (const Layout layout : {Layout{1, 1}, Layout{4, 1}}) {
    const SampledRow got = SampleWith({logits}, {row}, layout)[0];
    EXPECT_EQ(got.sampled.id, GetParam().expected) << layout.ranks << " ranks";
    // Raw whatever was changed.
    EXPECT_NEAR(got.sampled.logprob, logits[GetParam().expected] - std::log(sum), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, SamplerEdits,
    testing::Values(EditCase{"none", [](auto&, auto&, auto&) {}, 0},
                    EditCase{"bias",
                             [](auto& p, auto&, auto&) {
                               p.logit_bias = {{80, 6.5f}};
                             },
                             80},
                    EditCase{"bias_down",
                             [](auto& p, auto&, auto&) {
                               p.logit_bias = {{0, -1.5f}};
                             },
                             40},
                    EditCase{"bias_of_no_token",
                             [](auto& p, auto&, auto&) {
                               p.logit_bias = {{999, 99.0f}};
                             },
                             0},
                    EditCase{"suppressed",
                             [](auto& p, auto&, auto&) {
                               p.suppressed = {0, 40};
                             },
                             120},
                    EditCase{"suppressed_despite_bias",
                             [](auto& p, auto&, auto&) {
                               p.suppressed = {0};
                               p.logit_bias = {{0, 100.0f}};
                             },
                             40},
                    EditCase{"min_tokens",
                             [](auto& p, auto&, auto& row) {
                               p.stop_ids = {0};
                               p.min_tokens = 3;
                               row.generated = 2;
                             },
                             40},
                    EditCase{"min_tokens_reached",
                             [](auto& p, auto&, auto& row) {
                               p.stop_ids = {0};
                               p.min_tokens = 3;
                               row.generated = 3;
                             },
                             0},
                    EditCase{"repetition_of_the_prompt",
                             [](auto& p, auto& counts, auto&) {
                               p.repetition_penalty = 1.5f;
                               counts.prompt = {{0, 1}};
                             },
                             40},
                    EditCase{"repetition_of_negative_logits",
                             [](auto& p, auto& counts, auto&) {
                               p.repetition_penalty =
                                   0.1f;  // encourages: -1 becomes -0.1, 5 becomes 50
                               counts.prompt = {{80, 2}, {40, 1}};
                             },
                             40},
                    EditCase{"presence",
                             [](auto& p, auto& counts, auto&) {
                               p.presence_penalty = 1.5f;
                               counts.output = {{0, 9}};
                             },
                             40},
                    EditCase{"presence_not_of_the_prompt",
                             [](auto& p, auto& counts, auto&) {
                               p.presence_penalty = 1.5f;
                               counts.prompt = {{0, 9}};
                             },
                             0},
                    EditCase{"frequency",
                             [](auto& p, auto& counts, auto&) {
                               p.frequency_penalty = 0.5f;
                               counts.output = {{0, 4}, {40, 3}};  // 5 - 2, 4 - 1.5, 3
                             },
                             0},
                    EditCase{"frequency_more",
                             [](auto& p, auto& counts, auto&) {
                               p.frequency_penalty = 0.5f;
                               counts.output = {{0, 5}, {40, 3}};
                             },
                             120},
                    EditCase{"bias_before_repetition",
                             [](auto& p, auto& counts, auto&) {
                               p.repetition_penalty =
                                   2.0f;  // (7 + 3) / 2 = 5 ties, and 0 is the lower id
                               p.logit_bias = {{40, 6.0f}};
                               counts.output = {{40, 1}};
                             },
                             0}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Sampler, EditsReachEverySamplingPath) {
  constexpr int kRows = 16, kVocab = 3000;
  const Matrix logits = RandomLogits(kRows, kVocab, 2, 23);
  std::mt19937 random(3);
  TokenCounts counts;
  for (int i = 0; i < 400; ++i) counts.prompt[static_cast<TokenId>(random() % kVocab)] = 1;
  for (int i = 0; i < 300; ++i) ++counts.output[static_cast<TokenId>(random() % kVocab)];
  for (Options options : AllOptions()) {
    SamplingParams& p = options.params;
    p.repetition_penalty = 1.3f;
    p.presence_penalty = 0.4f;
    p.frequency_penalty = 0.7f;
    for (int i = 0; i < 200; ++i) {
      p.logit_bias.push_back({static_cast<TokenId>(i * 11), i % 2 == 0 ? 3.0f : -100.0f});
    }
    p.suppressed = {22, 44, 2999};
    p.stop_ids = {66};
    p.min_tokens = 5;
    std::vector<SampleRow> rows = Rows(kRows, p, &counts);
    for (SampleRow& row : rows) row.generated = 4;
    const std::vector<SampledRow> got = SampleWith(logits, rows, Layout{2, 2});
    for (int i = 0; i < kRows; ++i) {
      EXPECT_EQ(got[i].sampled.id, ReferenceToken(logits[i], rows[i])) << options.name << ", " << i;
    }
  }
}

TEST(Sampler, LogprobsAreRawAndDescending) {
  constexpr int kVocab = 2003, kTop = 20;
  Matrix logits = RandomLogits(3, kVocab, 4, 8);
  SamplingParams params;
  params.temperature = 0.7f;
  params.top_k = 3;
  params.logit_bias = {{7, 50.0f}};
  std::vector<SampleRow> rows = Rows(3, params);
  rows[0].wants_logprob = true;
  rows[0].top_logprobs = kTop;
  rows[1].samples = false;  // a prompt token
  rows[1].wants_logprob = true;
  rows[1].scored_token = 1234;
  rows[1].top_logprobs = 2;
  rows[2].samples = false;
  rows[2].scored_token = kVocab - 1;
  for (const Layout layout : {Layout{1, 1}, Layout{1, 4}, Layout{3, 1}}) {
    const std::vector<SampledRow> got = SampleWith(logits, rows, layout);
    const auto logprob = [&](int row, TokenId id) {
      double max = -1e30, sum = 0;
      for (float logit : logits[row]) max = std::max(max, double{logit});
      for (float logit : logits[row]) sum += std::exp(double{logit} - max);
      return double{logits[row][id]} - max - std::log(sum);
    };
    // An exp errs by two units in the last place, 2^-22; the result, below 16, is rounded: 2^-21.
    constexpr double kTolerance = 0x1p-22 + 0x1p-21;
    EXPECT_EQ(got[0].sampled.id, 7);
    EXPECT_NEAR(got[0].sampled.logprob, logprob(0, 7), kTolerance);
    ASSERT_EQ(got[0].sampled.top.size(), static_cast<size_t>(kTop));
    std::vector<float> sorted = logits[0];
    std::sort(sorted.rbegin(), sorted.rend());
    for (int i = 0; i < kTop; ++i) {
      EXPECT_EQ(logits[0][got[0].sampled.top[i].id], sorted[i]);
      EXPECT_NEAR(got[0].sampled.top[i].logprob, logprob(0, got[0].sampled.top[i].id), kTolerance);
    }
    EXPECT_EQ(got[1].sampled.id, -1);
    EXPECT_EQ(got[1].scored.id, 1234);
    EXPECT_NEAR(got[1].scored.logprob, logprob(1, 1234), kTolerance);
    EXPECT_EQ(got[1].scored.top.size(), 2u);
    EXPECT_EQ(got[2].scored.id, kVocab - 1);
    EXPECT_NEAR(got[2].scored.logprob, logprob(2, kVocab - 1), kTolerance);
    EXPECT_TRUE(got[2].scored.top.empty());
  }
}

TEST(Sampler, LogprobsOfThresholdRowsAreThoseOfTheChosenToken) {
  const Matrix logits = RandomLogits(4, 5000, 3, 77);
  SamplingParams params;
  params.top_p = 0.9f;
  params.logit_bias = {{17, 8.0f}};
  std::vector<SampleRow> rows = Rows(4, params);
  for (SampleRow& row : rows) {
    row.wants_logprob = true;
    row.top_logprobs = 5000;
  }
  for (const SampledRow& row : SampleWith(logits, rows, Layout{2, 1})) {
    const auto& top = row.sampled.top;
    ASSERT_EQ(top.size(), 5000u);
    const auto it = std::find_if(top.begin(), top.end(),
                                 [&](const TokenLogprob& t) { return t.id == row.sampled.id; });
    ASSERT_NE(it, top.end());
    EXPECT_EQ(it->logprob, row.sampled.logprob);
  }
}

TEST(Sampler, UnusableLogitsAndParametersStillGiveATokenOfTheVocabulary) {
  constexpr int kVocab = 500;
  Matrix logits(8, std::vector<float>(kVocab, 0.0f));
  logits[0].assign(kVocab, kNan);
  logits[1].assign(kVocab, -kInfinity);
  logits[2].assign(kVocab, kInfinity);
  logits[3][300] = kInfinity;
  logits[4][300] = kNan;
  logits[5].assign(kVocab, -kInfinity);
  logits[5][299] = -3;
  logits[6].assign(kVocab, std::numeric_limits<float>::max());
  logits[7].assign(kVocab, kNan);
  logits[7][300] = 1e-40f;
  std::vector<Options> options = AllOptions();
  for (const float odd : {kNan, kInfinity, -kInfinity, -1.0f, 1e-30f, 1e30f}) {
    for (int field = 0; field < 7; ++field) {
      Options wild{"wild", {}};
      SamplingParams& p = wild.params;
      float* const fields[] = {&p.temperature,
                               &p.top_p,
                               &p.min_p,
                               &p.repetition_penalty,
                               &p.presence_penalty,
                               &p.frequency_penalty,
                               &p.logit_bias.emplace_back(300, 0.0f).second};
      *fields[field] = odd;
      p.top_k = field % 2 == 0 ? 10 : -3;
      options.push_back(wild);
    }
  }
  TokenCounts counts;
  counts.output = {{300, 2}, {-5, 1}, {100000, 1}};
  for (const Options& option : options) {
    std::vector<SampleRow> rows = Rows(8, option.params, &counts);
    for (SampleRow& row : rows) {
      row.wants_logprob = true;
      row.top_logprobs = 3;
      row.scored_token = 100000;
    }
    const std::vector<SampledRow> got = SampleWith(logits, rows, Layout{2, 2});
    for (int i = 0; i < 8; ++i) {
      EXPECT_GE(got[i].sampled.id, 0) << option.name << ", " << i;
      EXPECT_LT(got[i].sampled.id, kVocab) << option.name << ", " << i;
      EXPECT_TRUE(std::isfinite(got[i].sampled.logprob)) << option.name << ", " << i;
    }
    if (std::string(option.name) == "wild") continue;
    EXPECT_EQ(got[3].sampled.id, 300) << option.name;
    EXPECT_NE(got[4].sampled.id, 300) << option.name;
    EXPECT_EQ(got[5].sampled.id, 299) << option.name;
    EXPECT_EQ(got[7].sampled.id, 300) << option.name;
  }
}

TEST(Sampler, NoRowsIsFine) {
  EXPECT_TRUE(SampleWith(Matrix(1, std::vector<float>(10)), {}, Layout{2, 1}).empty());
}

TEST(Sampler, ARealTeamGivesTheSameTokens) {
  constexpr int kRows = 6, kVocab = 20000;
  const Matrix logits = RandomLogits(kRows, kVocab, 3, 99);
  const std::unique_ptr<ThreadTeam> team = ThreadTeam::Create(3, {});
  const auto comms = CreateInprocCommunicators(1);
  const std::unique_ptr<Sampler> sampler = Sampler::Create(*team, *comms[0], kVocab);
  const std::unique_ptr<Stream> stream = CreateCpuStream();
  for (const Options& options : AllOptions()) {
    const std::vector<SampleRow> rows = Rows(kRows, options.params);
    std::vector<float> data;
    for (const auto& row : logits) data.insert(data.end(), row.begin(), row.end());
    LogitsView view;
    view.data = data.data();
    view.rows = kRows;
    view.stride = kVocab;
    view.vocab.end = kVocab;
    std::vector<SampledRow> out;
    sampler->Sample(view, rows, *stream, &out);
    ASSERT_TRUE(stream->Synchronize().ok());
    for (int i = 0; i < kRows; ++i) {
      EXPECT_EQ(out[i].sampled.id, ReferenceToken(logits[i], rows[i])) << options.name;
    }
  }
}

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
