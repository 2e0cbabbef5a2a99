// The draw for rows that a list of candidates decides.
#pragma once
#include <cstdint>
#include <vector>

#include "worker/sampler_filter.h"
#include "worker/sampler_math.h"

namespace lapidary {

// The token of a row from its best candidates, in order, at least one: cut to top_k, to the
// shortest prefix with top_p of their mass, to min_p of the best; then the token at whose weight
// the random point falls when the kept tokens are laid out by ascending id.
TokenCandidate Draw(const Filter& filter, uint64_t bits, std::vector<TokenCandidate> candidates);

}  // namespace lapidary
