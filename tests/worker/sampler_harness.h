// Runs the sampler on ranks that are threads, and a plain reference beside it.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

#include "kernels/sampling/penalties.h"
#include "kernels/sampling/philox.h"
#include "worker/sampler.h"
#include "worker/stream.h"

namespace lapidary {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

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
inline std::vector<SampledRow> SampleWith(const Matrix& logits, const std::vector<SampleRow>& rows,
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

inline Matrix RandomLogits(int rows, int vocab, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  Matrix logits(rows, std::vector<float>(vocab));
  for (auto& row : logits) {
    for (float& logit : row) logit = normal(random);
  }
  return logits;
}

// A row for every row of logits, with one set of parameters.
inline std::vector<SampleRow> Rows(int count, const SamplingParams& params,
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
inline TokenId ReferenceToken(std::vector<float> logits, const SampleRow& row) {
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

inline std::vector<Options> AllOptions() {
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

// Every edit of the logits at once, for a vocabulary of 3000. The row has generated fewer than 5.
inline void AddEveryEdit(SamplingParams& p) {
  p.repetition_penalty = 1.3f;
  p.presence_penalty = 0.4f;
  p.frequency_penalty = 0.7f;
  for (int i = 0; i < 200; ++i) {
    p.logit_bias.push_back({static_cast<TokenId>(i * 11), i % 2 == 0 ? 3.0f : -100.0f});
  }
  p.suppressed = {22, 44, 2999};
  p.stop_ids = {66};
  p.min_tokens = 5;
}

// Prompt and output of some hundred tokens.
inline TokenCounts ManyCounts(int vocab) {
  std::mt19937 random(3);
  TokenCounts counts;
  for (int i = 0; i < 400; ++i) counts.prompt[static_cast<TokenId>(random() % vocab)] = 1;
  for (int i = 0; i < 300; ++i) ++counts.output[static_cast<TokenId>(random() % vocab)];
  return counts;
}

}  // namespace lapidary
