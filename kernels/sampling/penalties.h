// What repetition does to one logit. Order: repetition, then frequency and presence (as vLLM).
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace lapidary {

struct Penalties {
  float repetition = 1.0f;  // of tokens in prompt or output; > 1 makes them less likely
  float presence = 0.0f;    // of tokens in the output
  float frequency = 0.0f;   // of tokens in the output, for each time
};

// The logit of a token that stands `in_prompt` or not, and `output_count` times in the output.
// Repetition as in CTRL (Keskar et al., 2019): positive logits are divided, others multiplied, so
// that both become smaller. Every FMA is written: the same bits on host and device.
LAPIDARY_HOST_DEVICE float ApplyPenalties(float logit, const Penalties& p, bool in_prompt,
                                          int32_t output_count) {
  if (!in_prompt && output_count <= 0) return logit;
  const float less =
      output_count > 0 ? fmaf(p.frequency, static_cast<float>(output_count), p.presence) : 0.0f;
  return logit > 0 ? logit / p.repetition - less : fmaf(logit, p.repetition, -less);
}

}  // namespace lapidary
