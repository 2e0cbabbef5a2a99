// Waiting for another process through shared memory: spin at most 20 us, then sleep on a futex.
//
// Everything here is plain memory of fixed layout that several processes map (or several threads
// share) and that starts zeroed. A counter only grows (modulo 2^32); differences below 2^31 decide
// what "reached" means. std::atomic carries the happens-before edges, so ThreadSanitizer sees them.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace lapidary {

// How long a waiter burns its core before it sleeps. Ranks may outnumber cores.
inline constexpr absl::Duration kMaxSpin = absl::Microseconds(20);

// A counter with one writer and any number of waiters, on a cache line of its own.
struct alignas(64) SharedCounter {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t>
      sleepers;  // waiters inside the futex; the writer wakes only if there are any

  // Publishes everything written before it to whoever waits for `v`.
  void Advance(uint32_t v);
  void WakeAll();
  bool Reached(uint32_t target) const {
    return static_cast<int32_t>(value.load(std::memory_order_acquire) - target) >= 0;
  }
};

// The end of a group, told once: the first reason stays.
struct alignas(64) SharedAbort {
  static constexpr int kReasonBytes = 500;
  std::atomic<uint32_t> state;  // 0 running, 1 the reason is being written, 2 aborted
  char reason[kReasonBytes];

  // False when it had been aborted before. The caller wakes the counters' sleepers.
  bool Set(const std::string& text);
  bool aborted() const { return state.load(std::memory_order_acquire) != 0; }
  // UNAVAILABLE with the reason.
  absl::Status status() const;
};

enum class WaitOutcome { kReached, kAborted, kTimedOut };

// Waits until the counter has reached `target`. What has been reached counts even after an abort.
WaitOutcome WaitReached(SharedCounter& counter, uint32_t target, const SharedAbort& abort,
                        absl::Duration timeout);

}  // namespace lapidary
