// The one primitive under the CPU collectives: every rank shows a slot of bytes to all others.
//
//   fill OwnSlot()  ->  Meet()  ->  read Slot(r) of every rank  ->  (next phase) fill OwnSlot() ...
//
// Slots are doubled: phase k writes half k % 2, so one meeting per phase is enough. Nobody writes
// into what another may still read, because the half comes round again only two meetings later, and
// a rank arrives at a meeting when it has finished reading the phase before.
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/comm/shared_wait.h"

namespace lapidary {

class Exchange {
 public:
  static constexpr int kMaxRanks = 64;
  static int64_t Bytes(int size, int64_t slot_bytes);

  // `memory` [Bytes(size, slot_bytes)], zeroed, 64-byte aligned, mapped by all ranks.
  Exchange(void* memory, int rank, int size, int64_t slot_bytes);

  int rank() const { return rank_; }
  int size() const { return size_; }
  int64_t slot_bytes() const { return slot_bytes_; }

  // Of the coming phase: to be filled before Meet().
  uint8_t* OwnSlot() { return SlotAt(rank_, phase_ + 1); }
  // Waits for all ranks. UNAVAILABLE with the reason after an abort, also one of another rank; a
  // rank that does not come within `timeout` aborts the group and is named.
  absl::Status Meet(absl::Duration timeout);
  // Of the phase just met; valid until the next Meet().
  const uint8_t* Slot(int rank) const { return SlotAt(rank, phase_); }

  // From any thread. The first reason stays.
  void Abort(const std::string& reason);
  absl::Status abort_status() const;

 private:
  struct Header;
  uint8_t* SlotAt(int rank, uint32_t phase) const {
    return slots_ + ((phase & 1) * int64_t{size_} + rank) * slot_bytes_;
  }

  Header& header_;
  const int rank_;
  const int size_;
  const int64_t slot_bytes_;
  uint8_t* const slots_;
  uint32_t phase_ = 0;  // met so far; the stream's thread only
};

}  // namespace lapidary
