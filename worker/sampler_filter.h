// From a request's parameters to how its token is drawn. Shared by the samplers of all devices.
#pragma once
#include <cstdint>

#include "engine/sampling_params.h"
#include "worker/sampler_math.h"

namespace lapidary {

// Up to this top_k, ranks exchange candidates; beyond, thresholds are found together.
inline constexpr int kMaxCandidates = 256;

struct Filter {
  bool greedy = false;     // the best token, whatever the seed
  int32_t top_k = 0;       // 0: none
  double top_p = 1;        // 1: none
  int64_t min_weight = 1;  // min_p, of the best token's 2^44
  float temperature = 1;

  // Decided by this many best candidates; 0: by thresholds.
  int candidates() const { return greedy ? 1 : top_k <= kMaxCandidates ? top_k : 0; }
};
// Any parameters give a filter: what means nothing (negative, NaN) filters nothing; a temperature
// below 1e-5 is greedy.
Filter MakeFilter(const SamplingParams& params, int64_t vocab);

// The smallest mass that a top-p prefix must reach, at least 1.
int64_t TopPTarget(double top_p, int64_t mass);

// Where in [0, mass) 64 random bits point. mass > 0.
inline int64_t DrawPoint(uint64_t bits, int64_t mass) {
  return static_cast<int64_t>(
      (static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(mass)) >> 64);
}

}  // namespace lapidary
