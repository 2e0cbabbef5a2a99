// The arithmetic of choosing a token, the same on every rank and for every split of the vocabulary.
//
// A token's weight is an integer, round(2^44 exp((x - max) / temperature)), computed by one
// sequence of instructions whatever lies beside it. Sums of integers do not depend on their order:
// so masses, thresholds and the token drawn are the same bytes for any number of ranks and threads.
// What is lost are tokens less likely than 2^-45 of the best one.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "common/base/ids.h"

namespace lapidary {

inline constexpr int kWeightBits = 44;  // 2^18 tokens of weight 2^44 sum to 2^62
inline constexpr int64_t kWeightOne = int64_t{1} << kWeightBits;

// A candidate for the next token: ordered by its logit after bias and penalties.
struct TokenCandidate {
  float value = 0;  // the logit after bias and penalties
  float raw = 0;    // the model's
  TokenId id = -1;
};

// The one order of tokens: descending value, then ascending id. What a filter keeps is a beginning
// of it.
inline bool Better(const TokenCandidate& a, const TokenCandidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// An integer with the order of the values; +0 and -0 are one, NaN is below everything.
inline uint32_t OrderKey(float value) {
  if (value != value) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float FromOrderKey(uint32_t key) {
  return std::bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct Softmax {
  float max = 0;
  float scale = 1;  // log2(e) / temperature
};
inline Softmax MakeSoftmax(float max, float temperature) {
  constexpr float kLog2E = 1.44269504f;
  return {max, kLog2E / std::clamp(temperature, 1e-5f, 1e6f)};
}

// weights[i] of values[i]; NaN and -inf weigh nothing.
void ComputeWeights(const float* values, int64_t count, Softmax softmax, int64_t* weights);
int64_t WeightOf(float value, Softmax softmax);
void ComputeOrderKeys(const float* values, int64_t count, uint32_t* keys);

// Of values[0, count): the mass of those above `threshold` that weigh at least min_weight, and the
// number of those equal to it.
struct KeptMass {
  int64_t above = 0;
  int64_t equal = 0;
};
KeptMass MassAbove(const float* values, int64_t count, Softmax softmax, float threshold,
                   int64_t min_weight);

// Appends those of values[0, count) in [low, high].
void CollectBetween(const float* values, int64_t count, float low, float high,
                    std::vector<float>* found);

}  // namespace lapidary
