#include "worker/expert_choice.h"

#include <algorithm>
#include <cmath>

namespace lapidary {

void ChooseExperts(const float* logits, int64_t experts, const float* factor, int top_k,
                   ExpertChoice* chosen) {
  for (int j = 0; j < top_k; ++j) {
    int32_t best = -1;
    for (int32_t e = 0; e < experts; ++e) {
      bool taken = false;
      for (int i = 0; i < j; ++i) taken = taken || chosen[i].expert == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    chosen[j].expert = best;
  }
  const float top = logits[chosen[0].expert];
  double total = 0;
  for (int j = 0; j < top_k; ++j) {
    total += std::exp(double{logits[chosen[j].expert]} - double{top});
  }
  for (int j = 0; j < top_k; ++j) {
    const double p = std::exp(double{logits[chosen[j].expert]} - double{top}) / total;
    chosen[j].weight = static_cast<float>(p) * factor[chosen[j].expert];
  }
  std::sort(chosen, chosen + top_k,
            [](const ExpertChoice& a, const ExpertChoice& b) { return a.expert < b.expert; });
}

void TokensOfExpert(const ExpertChoice* chosen, int64_t tokens, int top_k, int64_t expert,
                    std::vector<ExpertToken>& members) {
  members.clear();
  for (int64_t t = 0; t < tokens; ++t) {
    for (int j = 0; j < top_k; ++j) {
      const ExpertChoice& choice = chosen[t * top_k + j];
      if (choice.expert == expert) members.push_back({static_cast<int32_t>(t), choice.weight});
    }
  }
}

}  // namespace lapidary
