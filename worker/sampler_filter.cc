#include "worker/sampler_filter.h"

#include <algorithm>
#include <cmath>

namespace lapidary {

Filter MakeFilter(const SamplingParams& params, int64_t vocab) {
  Filter filter;
  filter.greedy = !(params.temperature >= 1e-5f) || params.top_k == 1;
  filter.temperature = params.temperature;
  if (params.top_k > 0 && params.top_k < vocab) filter.top_k = params.top_k;
  if (params.top_p < 1) filter.top_p = std::max(0.0, double{params.top_p});
  if (params.min_p > 0) {
    const double least = std::min(1.0, double{params.min_p}) * static_cast<double>(kWeightOne);
    filter.min_weight = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(least)));
  }
  return filter;
}

int64_t TopPTarget(double top_p, int64_t mass) {
  const auto target = static_cast<int64_t>(std::ceil(top_p * static_cast<double>(mass)));
  return std::clamp<int64_t>(target, 1, std::max<int64_t>(mass, 1));
}

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
