// A fixed set of threads, one per core of the launcher's affinity mask, meeting at a barrier that
// spins briefly and then sleeps (a step has hundreds of products of 10 to 100 us; a futex wake-up
// costs 5 to 50 us; a machine shared by more ranks than cores must not burn the others' time).
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace lapidary {

class ThreadTeam {
 public:
  // `cpus`: one logical CPU per thread, thread 0 being the one that calls Run; empty: no pinning
  // and `threads` threads. Threads are started here and joined by the destructor. Whoever calls Run
  // is pinned at its first call. A CPU that does not exist leaves its thread unpinned; when the
  // system refuses more threads the team is smaller: read size().
  static std::unique_ptr<ThreadTeam> Create(int threads, const std::vector<int>& cpus);
  virtual ~ThreadTeam() = default;

  virtual int size() const = 0;
  // Runs work(thread) on every thread, the caller being thread 0, and waits for all. Not reentrant,
  // and for one caller at a time. What a thread wrote is visible to the caller afterwards and to
  // every thread in the next Run.
  virtual void Run(const std::function<void(int)>& work) = 0;

  // Memory of the calling thread's own, 64-byte aligned, contents undefined, kept from call to call
  // until the thread ends. The next call may move it.
  static uint8_t* Scratch(size_t bytes);

  // Contiguous share of `total` for a thread: [Begin(total, t, n), Begin(total, t + 1, n)).
  static int64_t Begin(int64_t total, int thread, int threads) { return total * thread / threads; }
};

}  // namespace lapidary
