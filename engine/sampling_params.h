// How the tokens of one request are chosen and when it ends. Filled and validated at admission.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "common/base/ids.h"

namespace lapidary {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output, divides or multiplies (CTRL)
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output, times the count
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> suppressed;  // never sampled (generation_config suppress_tokens)
  uint64_t seed = 0;                // the client's, or drawn once at admission
  std::vector<TokenId> stop_ids;    // end the request and are part of its tokens
  bool ignore_eos = false;          // admission then leaves the model's EOS out of stop_ids
  int32_t min_tokens = 0;           // stop_ids can not be sampled before
  int32_t max_tokens = 0;
  int32_t logprobs = -1;         // -1: none; 0: of the chosen token; k: and of the k best
  int32_t prompt_logprobs = -1;  // the same for prompt tokens

  bool has_penalties() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
};

}  // namespace lapidary
