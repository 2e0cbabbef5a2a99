#include "worker/comm/exchange.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace lapidary {

struct Exchange::Header {
  SharedAbort abort;
  SharedCounter arrived[kMaxRanks];  // meetings this rank has come to
};

int64_t Exchange::Bytes(int size, int64_t slot_bytes) {
  return int64_t{sizeof(Header)} + 2 * int64_t{size} * slot_bytes;
}

Exchange::Exchange(void* memory, int rank, int size, int64_t slot_bytes)
    : header_(*static_cast<Header*>(memory)),
      rank_(rank),
      size_(size),
      slot_bytes_(slot_bytes),
      slots_(static_cast<uint8_t*>(memory) + sizeof(Header)) {}

absl::Status Exchange::Meet(absl::Duration timeout) {
  // An abort alone does not fail a meeting that everyone has come to: after the last one of a
  // group, the first rank to exit looks like a dead one to a slower rank.
  const uint32_t target = ++phase_;
  header_.arrived[rank_].Advance(target);
  for (int r = 0; r < size_; ++r) {
    switch (WaitReached(header_.arrived[r], target, header_.abort, timeout)) {
      case WaitOutcome::kReached:
        continue;
      case WaitOutcome::kAborted:
        return header_.abort.status();
      case WaitOutcome::kTimedOut:
        break;
    }
    std::vector<int> missing;
    for (int other = 0; other < size_; ++other) {
      if (!header_.arrived[other].Reached(target)) missing.push_back(other);
    }
    if (missing.empty()) continue;
    Abort(absl::StrFormat("rank %d waited %s for rank %s in a collective", rank_,
                          absl::FormatDuration(timeout), absl::StrJoin(missing, ", ")));
    return header_.abort.status();
  }
  return absl::OkStatus();
}

void Exchange::Abort(const std::string& reason) {
  if (!header_.abort.Set(reason)) return;
  for (int r = 0; r < size_; ++r) header_.arrived[r].WakeAll();
}

absl::Status Exchange::abort_status() const { return header_.abort.status(); }

}  // namespace lapidary
