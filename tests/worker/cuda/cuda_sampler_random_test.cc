// The GPU's sampler beside the CPU's on thousands of rows of every kind: all parameters with all
// oddities of logits, 1 to 4 ranks, 1 to 300 rows.
#include "tests/worker/cuda/cuda_sampler_harness.h"

namespace lapidary {
namespace {

// A random choice of a list.
template <class T, size_t kCount>
T Any(const T (&of)[kCount], std::mt19937& random) {
  return of[random() % kCount];
}

// Rows of every kind, each with its own logits, parameters and counts.
struct Batch {
  Matrix logits;
  std::vector<SamplingParams> params;
  std::vector<TokenCounts> counts;
  std::vector<SampleRow> rows;
};

std::vector<float> AnyLogits(int vocab, std::mt19937& random) {
  std::vector<float> row = RandomLogits(1, vocab, 0.3f * (1 + random() % 20), random())[0];
  const auto sprinkle = [&](float value, int one_in) {
    for (float& v : row) v = random() % one_in == 0 ? value : v;
  };
  switch (random() % 12) {
    case 0:
      for (float& v : row) v = std::round(v);
      break;
    case 1:
      row.assign(vocab, 2.5f);
      break;
    case 2:
      sprinkle(kNan, 5);
      break;
    case 3:
      sprinkle(-kInfinity, 2);
      break;
    case 4:
      sprinkle(kInfinity, 1 + vocab / 2);
      break;
    case 5:
      row.assign(vocab, random() % 2 == 0 ? -kInfinity : kNan);
      row[random() % vocab] = random() % 2 == 0 ? -1e-40f : row[0];
      break;
    case 6:
      for (float& v : row) v *= 1e37f;
      break;
    case 7:
      for (float& v : row) v = 1.0f + 0x1p-22f * static_cast<float>(random() % 300);
      break;
    default:
      break;
  }
  return row;
}

SamplingParams AnyParams(int vocab, std::mt19937& random) {
  SamplingParams p;
  p.temperature =
      Any({0.0f, 1e-30f, 1e-5f, 0.1f, 0.7f, 1.0f, 1.0f, 1.5f, 50.0f, 1e30f, -1.0f, kNan, kInfinity},
          random);
  p.top_k = Any({0, 0, 0, -3, 1, 2, 40, 64, 64, 255, 256, 257, 1000, vocab - 1, vocab, vocab + 5},
                random);
  p.top_p = Any({1.0f, 1.0f, 0.95f, 0.9f, 0.5f, 0.1f, 1e-6f, 0.0f, -1.0f, 2.0f, kNan}, random);
  p.min_p = Any({0.0f, 0.0f, 0.0f, 0.01f, 0.3f, 1.0f, 2.0f, -1.0f, kNan}, random);
  p.seed = uint64_t{random()} << 32 | random();
  const auto any_token = [&] { return static_cast<TokenId>(random() % (vocab + 3)) - 1; };
  if (random() % 4 == 0) {
    p.repetition_penalty = Any({1.0f, 1.3f, 0.8f, 2.0f, 0.0f}, random);
    p.presence_penalty = Any({0.0f, 0.4f, -0.5f}, random);
    p.frequency_penalty = Any({0.0f, 0.7f, -0.2f, 1e30f}, random);
  }
  if (random() % 4 == 0) {
    for (uint32_t n = random() % 40; n > 0; --n) {
      p.logit_bias.emplace_back(any_token(),
                                Any({3.0f, -100.0f, 0.25f, -kInfinity, 1e-3f}, random));
    }
    if (p.logit_bias.size() > 3) p.logit_bias.push_back(p.logit_bias[1]);  // twice
  }
  if (random() % 4 == 0) {
    for (uint32_t n = random() % 20; n > 0; --n) p.suppressed.push_back(any_token());
  }
  for (uint32_t n = random() % 3; n > 0; --n) p.stop_ids.push_back(any_token());
  p.min_tokens = random() % 3 == 0 ? 5 : 0;
  return p;
}

Batch RandomBatch(int count, int vocab, uint32_t seed) {
  std::mt19937 random(seed);
  Batch batch;
  batch.params.reserve(count);
  batch.counts.resize(count);
  for (int i = 0; i < count; ++i) {
    batch.logits.push_back(AnyLogits(vocab, random));
    batch.params.push_back(AnyParams(vocab, random));
    TokenCounts& counts = batch.counts[i];
    for (uint32_t n = random() % 60; n > 0; --n) {
      ++counts.output[static_cast<TokenId>(random() % vocab)];
      ++counts.prompt[static_cast<TokenId>(random() % vocab)];
    }
    SampleRow row;
    row.logits_row = i;
    row.samples = random() % 8 != 0;
    row.params = &batch.params[i];
    row.counts = random() % 8 == 0 ? nullptr : &counts;
    row.choice = random() % 3;
    row.position = static_cast<int32_t>(random() % 100000);
    row.generated = static_cast<int32_t>(random() % 8);
    if (random() % 3 == 0) row.scored_token = static_cast<TokenId>(random() % (vocab + 1));
    row.top_logprobs = random() % 3 != 0 ? 0 : static_cast<int32_t>(random() % 21);
    if (random() % 40 == 0) row.top_logprobs = 128;
    row.wants_logprob = random() % 3 == 0;
    batch.rows.push_back(row);
  }
  std::shuffle(batch.rows.begin(), batch.rows.end(), random);
  return batch;
}

struct RandomCase {
  int rows, vocab;
  Layout layout;
  int repeats;
};

class CudaSamplerRandom : public testing::TestWithParam<RandomCase> {};

TEST_P(CudaSamplerRandom, GivesTheCpusAnswers) {
  const RandomCase& c = GetParam();
  LAPIDARY_NEEDS_DEVICES(c.layout.ranks);
  for (int repeat = 0; repeat < c.repeats; ++repeat) {
    const auto seed = static_cast<uint32_t>(1000 * repeat + c.rows + c.vocab + c.layout.ranks);
    const Batch batch = RandomBatch(c.rows, c.vocab, seed);
    const auto got = CudaSampleWith(batch.logits, batch.rows, c.layout, repeat % 2 == 0 ? 4 : 1);
    ExpectCpuAnswers(batch.logits, batch.rows, got, ("seed " + std::to_string(seed)).c_str());
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, CudaSamplerRandom,
    testing::Values(RandomCase{1, 700, {1, 1, 1}, 40}, RandomCase{1, 700, {2, 1, 32}, 20},
                    RandomCase{3, 1, {1, 1, 1}, 5}, RandomCase{3, 2, {3, 1, 1}, 5},
                    RandomCase{17, 300, {4, 1, 100}, 8}, RandomCase{40, 5000, {2, 1, 4096}, 4},
                    RandomCase{256, 1000, {1, 1, 1}, 3}, RandomCase{256, 500, {3, 1, 32}, 2},
                    RandomCase{100, 4097, {4, 1, 32}, 2}, RandomCase{300, 257, {1, 1, 1}, 2},
                    RandomCase{2, 262144, {1, 1, 1}, 1}, RandomCase{2, 262144, {4, 1, 32}, 1}),
    [](const auto& info) {
      const RandomCase& c = info.param;
      return std::to_string(c.rows) + "_rows_" + std::to_string(c.vocab) + "_tokens_" +
             std::to_string(c.layout.ranks) + "_ranks";
    });

TEST(CudaSampler, ATokenDoesNotDependOnItsCompany) {
  const Batch batch = RandomBatch(60, 5000, 5);
  const std::vector<SampledRow> together = CudaSampleWith(batch.logits, batch.rows, Layout{1, 1});
  for (size_t i = 0; i < batch.rows.size(); i += 7) {
    SCOPED_TRACE(i);
    SampleRow alone = batch.rows[i];
    alone.logits_row = 0;
    const Matrix logits = {batch.logits[batch.rows[i].logits_row]};
    ExpectSameBits(CudaSampleWith(logits, {alone}, Layout{1, 1}, 4)[0], together[i]);
  }
}

}  // namespace
}  // namespace lapidary
