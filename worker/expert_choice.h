// Which experts each token goes to, on the CPU: the reference for the GPU's router kernel.
#pragma once
#include <cstdint>
#include <vector>

namespace lapidary {

struct ExpertChoice {
  int32_t expert = 0;
  float weight = 0;  // the expert's output counts this much
};

struct ExpertToken {
  int32_t token = 0;
  float weight = 0;
};

// The top_k largest of logits[experts] (ties: the lower id), softmax over them, times the expert's
// factor; in ascending id, into chosen[top_k]. (Softmax over all, renormalised over the chosen, is
// the same.) 1 <= top_k <= experts.
void ChooseExperts(const float* logits, int64_t experts, const float* factor, int top_k,
                   ExpertChoice* chosen);

// The tokens of chosen[tokens, top_k] that go to `expert`, ascending, in place of what `members`
// held.
void TokensOfExpert(const ExpertChoice* chosen, int64_t tokens, int top_k, int64_t expert,
                    std::vector<ExpertToken>& members);

}  // namespace lapidary
