// The GPU's sampler gives the CPU's tokens for the same logits: every option, layout, edit, tie and
// oddity.
#include "tests/worker/cuda/cuda_sampler_harness.h"

namespace lapidary {
namespace {

class CudaSamplerOptions : public testing::TestWithParam<Options> {};

// Spread logits; and logits of few values, where ties straddle every threshold and shard.
TEST_P(CudaSamplerOptions, GivesTheCpusTokensInEveryLayout) {
  constexpr int kRows = 6, kVocab = 9011;
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
    for (const Layout layout : {Layout{1, 1}, Layout{2, 1}, Layout{4, 1, 2000}}) {
      const auto got = CudaSampleWith(logits, rows, layout, layout.ranks == 2 ? 4 : 5);
      ExpectCpuAnswers(logits, rows, got, ties ? "ties" : "spread");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaSamplerOptions, testing::ValuesIn(AllOptions()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lapidary
