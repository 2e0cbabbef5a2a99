// How many pages each KV family gets from one memory budget.
//
// A sequence holds its whole context in global pages but only a window in sliding pages, so the
// sliding pool has a natural size: enough for every running sequence's window and for the chunks of
// one step. It gets that; global pages get the rest. When the budget is short, the number of
// running sequences that it is sized for shrinks until sequences of the expected length fill both
// pools alike.
//
// A prefix that is kept when its sequence has ended holds global pages and a window too. So with a
// prefix cache, what is left beside the running sequences is divided in the proportion of a kept
// prefix of the expected length, but at least half of it goes to global pages: a longer context
// needs only those. Without one, neither pool gets more than the running sequences can ever need.
#pragma once
#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "common/base/dtype.h"

namespace lapidary {

struct KvBudgetInput {
  std::array<int64_t, kKvFamilies> page_bytes = {0, 0};  // on one rank; 0: no layer of the family
  int64_t kv_bytes = 0;                                  // on one rank, for both pools
  int32_t window = 0;                                    // of the sliding layers
  int32_t max_context = 0;                               // asked for; 0: the largest that fits
  int32_t model_context = 0;       // what the model was made for: the largest for max_context = 0
  int32_t max_running = 64;        // sequences in a step
  int32_t max_step_tokens = 512;   // token budget of a step
  int32_t expected_tokens = 1024;  // length of a usual sequence, prompt and output
  bool prefix_cache = false;       // pages are also worth having when no sequence reads them
};

struct KvBudget {
  std::array<int32_t, kKvFamilies> pages = {0, 0};
  int32_t max_context = 0;
  int32_t full_sequences = 0;  // that the sliding pool is sized for, at most max_running
  int32_t kept_prefixes = 0;   // of the expected length, whose windows it has room for besides
  int64_t bytes = 0;           // of both pools, on one rank
};

// RESOURCE_EXHAUSTED when one sequence does not fit: of max_context tokens, or with max_context = 0
// of min(256, model_context). The message says what is needed.
absl::StatusOr<KvBudget> PlanKvPools(const KvBudgetInput& input);

// Sliding pages so that `sequences` at their windows and the chunks of one step fit together.
int32_t SlidingPagesNeeded(const KvBudgetInput& input, int32_t sequences, int32_t max_context);

}  // namespace lapidary
