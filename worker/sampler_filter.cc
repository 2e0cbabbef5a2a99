#include "worker/sampler_filter.h"

#include <algorithm>
#include <cmath>

#include "worker/sampler_math.h"

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

}  // namespace lapidary
