// Device code: from logits to logprobs.
#pragma once
#include "kernels/gpu.h"
#include "kernels/sampling/sample_step.h"
#include "kernels/sampling/token_weight.h"

namespace lapidary {

// Infinite logits have no probabilities; JSON has no infinities: the lowest number.
GPU_DEVICE float Logprob(float logit, const RowNorm& norm) {
  const auto logprob =
      static_cast<float>(static_cast<double>(logit) -
                         (static_cast<double>(norm.max) + static_cast<double>(norm.log_sum)));
  constexpr float kLowest = -3.40282347e38f;
  return logprob >= kLowest && logprob <= -kLowest ? logprob : kLowest;
}

}  // namespace lapidary
