// What surrounds the choice: edits of the logits, logprobs, unusable input.
#include "tests/worker/sampler_harness.h"

namespace lapidary {
namespace {

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
  const TokenCounts counts = ManyCounts(kVocab);
  for (Options options : AllOptions()) {
    AddEveryEdit(options.params);
    std::vector<SampleRow> rows = Rows(kRows, options.params, &counts);
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

}  // namespace
}  // namespace lapidary
