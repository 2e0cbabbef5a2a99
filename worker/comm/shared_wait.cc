#include "worker/comm/shared_wait.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <ctime>

namespace lapidary {
namespace {

// A lost wake-up (an abort between check and sleep) costs at most this.
constexpr int64_t kSliceNanos = 100'000'000;

int64_t NowNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Not FUTEX_PRIVATE: the word may be shared between processes.
void FutexWait(std::atomic<uint32_t>* word, uint32_t expected, int64_t nanos) {
  timespec timeout;
  timeout.tv_sec = nanos / 1'000'000'000;
  timeout.tv_nsec = nanos % 1'000'000'000;
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT, expected, &timeout, nullptr, 0);
}

void FutexWakeAll(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

// Store and load are sequentially consistent, as are the waiter's: either the waiter sees the new
// value or the writer sees the sleeper.
void SharedCounter::Advance(uint32_t v) {
  value.store(v, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(&value);
}

void SharedCounter::WakeAll() { FutexWakeAll(&value); }

bool SharedAbort::Set(const std::string& text) {
  uint32_t expected = 0;
  if (!state.compare_exchange_strong(expected, 1)) return false;
  const size_t bytes = std::min<size_t>(text.size(), kReasonBytes - 1);
  std::memcpy(reason, text.data(), bytes);
  reason[bytes] = 0;
  state.store(2, std::memory_order_release);
  return true;
}

absl::Status SharedAbort::status() const {
  // A process killed between the two stores leaves 1 for ever; the reason is then lost.
  const int64_t give_up = NowNanos() + 10'000'000;
  while (state.load(std::memory_order_acquire) == 1 && NowNanos() < give_up) _mm_pause();
  if (state.load(std::memory_order_acquire) != 2) {
    return absl::UnavailableError("the group was aborted");
  }
  return absl::UnavailableError(reason);
}

WaitOutcome WaitReached(SharedCounter& counter, uint32_t target, const SharedAbort& abort,
                        absl::Duration timeout) {
  if (counter.Reached(target)) return WaitOutcome::kReached;
  const int64_t start = NowNanos();
  const int64_t spin_end = start + absl::ToInt64Nanoseconds(kMaxSpin);
  do {
    for (int i = 0; i < 32; ++i) {
      if (counter.Reached(target)) return WaitOutcome::kReached;
      _mm_pause();
    }
  } while (NowNanos() < spin_end);

  const int64_t deadline =
      timeout == absl::InfiniteDuration() ? INT64_MAX : start + absl::ToInt64Nanoseconds(timeout);
  counter.sleepers.fetch_add(1, std::memory_order_seq_cst);
  WaitOutcome outcome = WaitOutcome::kReached;
  while (true) {
    const uint32_t seen = counter.value.load(std::memory_order_seq_cst);
    if (static_cast<int32_t>(seen - target) >= 0) break;
    if (abort.aborted()) {
      outcome = WaitOutcome::kAborted;
      break;
    }
    const int64_t left = deadline - NowNanos();
    if (left <= 0) {
      outcome = WaitOutcome::kTimedOut;
      break;
    }
    FutexWait(&counter.value, seen, std::min(left, kSliceNanos));
  }
  counter.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  return outcome;
}

}  // namespace lapidary
