#include "worker/sampler_draw.h"

#include <algorithm>

namespace lapidary {

TokenCandidate Draw(const Filter& filter, uint64_t bits, std::vector<TokenCandidate> candidates) {
  if (filter.greedy) return candidates.front();
  const auto count = std::min(candidates.size(), static_cast<size_t>(filter.candidates()));
  candidates.resize(count);
  const Softmax softmax = MakeSoftmax(candidates.front().value, filter.temperature);
  const auto weight = [&](const TokenCandidate& c) { return WeightOf(c.value, softmax); };

  int64_t mass = 0;
  for (const TokenCandidate& c : candidates) mass += weight(c);
  const int64_t target = filter.top_p < 1 ? TopPTarget(filter.top_p, mass) : mass;
  int64_t kept_mass = 0;
  size_t kept = 0;
  while (kept < count && kept_mass < target) {
    const int64_t w = weight(candidates[kept]);
    if (w < filter.min_weight) break;
    kept_mass += w;
    ++kept;
  }
  if (kept_mass == 0) return candidates.front();  // infinite logits have no distribution
  const TokenCandidate best = candidates.front();
  candidates.resize(kept);
  std::sort(candidates.begin(), candidates.end(),
            [](const TokenCandidate& a, const TokenCandidate& b) { return a.id < b.id; });
  int64_t point = DrawPoint(bits, kept_mass);
  for (const TokenCandidate& c : candidates) {
    const int64_t w = weight(c);
    if (point < w) return c;
    point -= w;
  }
  return best;
}

}  // namespace lapidary
