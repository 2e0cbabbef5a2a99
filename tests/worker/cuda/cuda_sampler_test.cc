// The GPU's sampler gives the CPU's tokens for the same logits: every option, layout, edit and tie.
// cuda_sampler_random_test.cc mixes them.
#include "tests/worker/cuda/cuda_sampler_harness.h"

namespace lapidary {
namespace {

class CudaSamplerOptions : public testing::TestWithParam<Options> {};

// Spread logits; and logits of few values, where ties straddle every threshold and shard.
TEST_P(CudaSamplerOptions, GivesTheCpusTokensInEveryLayout) {
  constexpr int kRows = 4, kVocab = 9011;
  for (const bool ties : {false, true}) {
    Matrix logits = RandomLogits(kRows, kVocab, 3, 17);
    for (auto& row : logits) {
      for (float& logit : row) logit = ties ? std::round(logit * 0.7f) : logit;
    }
    std::vector<SampleRow> rows = Rows(kRows, GetParam().params);
    for (int i = 0; i < kRows; ++i) {
      rows[i].wants_logprob = i % 2 == 0;
      rows[i].top_logprobs = i % 3 == 0 ? 5 : 0;
    }
    const std::vector<Layout> layouts =
        ties ? std::vector<Layout>{{1, 1}, {4, 1, 2000}} : std::vector<Layout>{{2, 1}};
    for (Layout layout : layouts) {
      layout.ranks = std::min(layout.ranks, Devices());
      const auto got = CudaSampleWith(logits, rows, layout, ties ? 5 : 4);
      ExpectCpuAnswers(logits, rows, got, ties ? "ties" : "spread");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaSamplerOptions, testing::ValuesIn(AllOptions()),
                         [](const auto& info) { return std::string(info.param.name); });

// Or one, where there is but one GPU.
Layout TwoRanks() { return {std::min(2, Devices()), 1}; }

TEST(CudaSampler, EditsReachEverySamplingPath) {
  constexpr int kRows = 5, kVocab = 3000;
  const Matrix logits = RandomLogits(kRows, kVocab, 2, 23);
  const TokenCounts counts = ManyCounts(kVocab);
  for (Options options : AllOptions()) {
    AddEveryEdit(options.params);
    std::vector<SampleRow> rows = Rows(kRows, options.params, &counts);
    for (SampleRow& row : rows) {
      row.generated = 4;
      row.wants_logprob = true;  // the model's logit of an edited token
    }
    ExpectCpuAnswers(logits, rows, CudaSampleWith(logits, rows, TwoRanks()), options.name);
  }
}

TEST(CudaSampler, ReportsUpTo256TopLogprobs) {
  const Matrix logits = RandomLogits(2, 5000, 3, 77);
  SamplingParams params;
  params.top_p = 0.9f;
  std::vector<SampleRow> rows = Rows(2, params);
  rows[0].top_logprobs = 256;
  rows[1].top_logprobs = 5000;
  const std::vector<SampledRow> got = CudaSampleWith(logits, rows, TwoRanks());
  ASSERT_EQ(got[1].sampled.top.size(), 256u);
  rows[1].top_logprobs = 256;
  ExpectCpuAnswers(logits, rows, got, "256");
}

TEST(CudaSampler, NoRowsIsFine) {
  EXPECT_TRUE(CudaSampleWith(Matrix(1, std::vector<float>(10)), {}, TwoRanks()).empty());
}

TEST(CudaSampler, RefusesWhatItCannotHold) {
  CudaSamplerConfig config;
  config.vocab = 262145;
  EXPECT_EQ(CudaSampler::Create(nullptr, config).status().code(),
            absl::StatusCode::kInvalidArgument);
  config.vocab = 100;
  LAPIDARY_NEEDS_DEVICES(9);
  ForRanks(9, [&](int, NcclCommunicator* nine, CudaStream&) {
    EXPECT_EQ(CudaSampler::Create(nine, config).status().code(),
              absl::StatusCode::kInvalidArgument);
  });
}

}  // namespace
}  // namespace lapidary
