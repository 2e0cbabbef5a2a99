#include "engine/kv_budget.h"

#include <algorithm>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "engine/kv_manager.h"

namespace lapidary {

namespace {

constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);
constexpr int32_t kSmallestContext = 256;  // below, a chat is not worth starting

int64_t Bytes(const KvBudgetInput& input, const std::array<int64_t, kKvFamilies>& pages) {
  return pages[kSliding] * input.page_bytes[kSliding] + pages[kGlobal] * input.page_bytes[kGlobal];
}

// Prefixes of the expected length that fit into `left` bytes with their windows, these in at most
// half of it.
int64_t KeptPrefixes(const KvBudgetInput& input, int64_t left, int64_t usual, int64_t window) {
  const int64_t window_bytes = window * input.page_bytes[kSliding];
  if (!input.prefix_cache || window_bytes <= 0 || left <= 0) return 0;
  const int64_t global_bytes = usual * input.page_bytes[kGlobal];
  if (global_bytes == 0) return left / window_bytes;
  return std::min(left / (global_bytes + window_bytes), left / 2 / window_bytes);
}

}  // namespace

int32_t SlidingPagesNeeded(const KvBudgetInput& input, int32_t sequences, int32_t max_context) {
  if (input.page_bytes[kSliding] == 0) return 0;
  // Each sequence: a window at its worst alignment. The chunks of a step: their tokens, and a page
  // begun for each but one of the sequences that share them.
  const int64_t windows = int64_t{sequences} * (PagesFor(input.window) + 1);
  const int64_t step = PagesFor(input.max_step_tokens) + (int64_t{sequences} - 1);
  const int64_t whole = int64_t{sequences} * PagesFor(max_context);
  return static_cast<int32_t>(
      std::min<int64_t>({windows + step, whole, std::numeric_limits<int32_t>::max()}));
}

absl::StatusOr<KvBudget> PlanKvPools(const KvBudgetInput& input) {
  const bool automatic = input.max_context <= 0;
  const int32_t smallest =
      automatic ? std::min(kSmallestContext, input.model_context) : input.max_context;
  if (smallest <= 0 || input.max_running <= 0 || input.max_step_tokens <= 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a context of %d tokens, %d running sequences and %d tokens in a step: each must be at "
        "least 1",
        smallest, input.max_running, input.max_step_tokens));
  }
  const bool has_global = input.page_bytes[kGlobal] > 0;
  const int64_t least_global = has_global ? PagesFor(smallest) : 0;
  const int64_t least = Bytes(input, {SlidingPagesNeeded(input, 1, smallest), least_global});
  if (least > input.kv_bytes) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%d bytes of KV memory do not hold one sequence of %d tokens, which needs %d bytes on "
        "each rank: give more KV memory or ask for a shorter context",
        input.kv_bytes, smallest, least));
  }
  const int32_t longest = automatic ? input.model_context : input.max_context;
  const int64_t usual = has_global ? PagesFor(std::clamp(input.expected_tokens, 1, longest)) : 0;
  KvBudget budget;
  budget.full_sequences = 1;
  // The most sequences of the expected length, one of which may have the context asked for.
  for (int32_t low = 1, high = input.max_running; low <= high;) {  // bytes grow with the number
    const int32_t middle = low + (high - low) / 2;
    const int64_t global = std::max(middle * usual, least_global);
    if (Bytes(input, {SlidingPagesNeeded(input, middle, longest), global}) <= input.kv_bytes) {
      budget.full_sequences = middle;
      low = middle + 1;
    } else {
      high = middle - 1;
    }
  }
  int64_t sliding = SlidingPagesNeeded(input, budget.full_sequences, longest);
  if (sliding > 0) {  // even one may be too much: when the longest possible does not fit
    const int64_t room = input.kv_bytes - least_global * input.page_bytes[kGlobal];
    sliding = std::min(sliding, room / input.page_bytes[kSliding]);
  }
  const int64_t running_global = std::max(budget.full_sequences * usual, least_global);
  const int64_t left = input.kv_bytes - Bytes(input, {sliding, running_global});
  const int64_t usual_window = std::min<int64_t>(
      PagesSpanned(input.window), PagesFor(std::clamp(input.expected_tokens, 1, longest)));
  const int64_t kept = KeptPrefixes(input, left, usual, usual_window);
  constexpr int64_t kMostPages = std::numeric_limits<int32_t>::max();
  budget.kept_prefixes = static_cast<int32_t>(std::min(kept, kMostPages));
  sliding = std::min(sliding + kept * usual_window, kMostPages);
  int64_t global = 0;
  if (has_global) {
    const int64_t rest = input.kv_bytes - sliding * input.page_bytes[kSliding];
    const int64_t most =
        input.prefix_cache ? kMostPages : int64_t{input.max_running} * PagesFor(longest);
    global = std::min({rest / input.page_bytes[kGlobal], most, kMostPages});
  }
  int64_t reach = longest;
  if (has_global) reach = std::min(reach, global * kPageTokens);
  if (sliding > 0 && sliding < PagesSpanned(input.window)) {
    reach = std::min(reach, sliding * kPageTokens);
  }
  budget.pages = {static_cast<int32_t>(sliding), static_cast<int32_t>(global)};
  budget.max_context = static_cast<int32_t>(reach);
  budget.bytes = Bytes(input, {sliding, global});
  return budget;
}

}  // namespace lapidary
