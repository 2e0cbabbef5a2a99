// The plain reference of a draw: sorts, and adds up whole numbers.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/sampling/sample_step.h"
#include "kernels/sampling/token_weight.h"

namespace lapidary {

struct ReferenceToken {
  float value = 0, raw = 0;
  int32_t id = -1;
};

// The token of `candidates`, any order. top_k 0: none. id -1 if nobody's value is above -inf.
// `light_ends`: the first token below min_weight ends the kept ones (short lists); else each is
// judged alone.
inline ReferenceToken DrawReference(const SampleTask& task,
                                    const std::vector<ReferenceToken>& candidates, int top_k,
                                    bool light_ends) {
  std::vector<ReferenceToken> order;
  for (const ReferenceToken& c : candidates) {
    if (TokenKey(c.value) > kKeyOfMinusInfinity) order.push_back(c);
  }
  if (order.empty()) return {};
  std::sort(order.begin(), order.end(), [](const ReferenceToken& a, const ReferenceToken& b) {
    return a.value != b.value ? a.value > b.value : a.id < b.id;
  });
  const ReferenceToken best = order.front();
  if (task.greedy) return best;
  if (top_k > 0 && top_k < std::ssize(order)) order.resize(top_k);
  const auto weight = [&](const ReferenceToken& c) {
    return TokenWeight(c.value, best.value, task.scale);
  };
  int64_t mass = 0;
  for (const ReferenceToken& c : order) mass += weight(c);
  const int64_t target = task.top_p < 1 ? TopPMass(task.top_p, mass) : mass;
  std::vector<ReferenceToken> kept;
  int64_t reached = 0, kept_mass = 0;
  for (const ReferenceToken& c : order) {
    if (reached >= target) break;
    reached += weight(c);
    if (weight(c) < task.min_weight) {
      if (light_ends) break;
      continue;
    }
    kept_mass += weight(c);
    kept.push_back(c);
  }
  if (kept_mass == 0) return best;
  std::sort(kept.begin(), kept.end(),
            [](const ReferenceToken& a, const ReferenceToken& b) { return a.id < b.id; });
  auto point = static_cast<int64_t>(
      static_cast<unsigned __int128>(task.bits) * static_cast<uint64_t>(kept_mass) >> 64);
  for (const ReferenceToken& c : kept) {
    if (point < weight(c)) return c;
    point -= weight(c);
  }
  return best;
}

}  // namespace lapidary
