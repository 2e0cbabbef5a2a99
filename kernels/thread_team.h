// A fixed set of threads, one per core of the launcher's affinity mask, meeting at a barrier that
// spins briefly and then sleeps (a step has hundreds of products of 10 to 100 us; a futex wake-up
// costs 5 to 50 us; a machine shared by more ranks than cores must not burn the others' time).
#pragma once
#include <functional>
#include <memory>
#include <vector>

namespace lapidary {

class ThreadTeam {
 public:
  // `cpus`: one logical CPU per thread, the calling thread being the first; empty: no pinning and
  // `threads` threads. Threads are started here and joined by the destructor.
  static std::unique_ptr<ThreadTeam> Create(int threads, const std::vector<int>& cpus);
  virtual ~ThreadTeam() = default;

  virtual int size() const = 0;
  // Runs work(thread) on every thread, the caller being thread 0, and waits for all. Not reentrant.
  virtual void Run(const std::function<void(int)>& work) = 0;

  // Contiguous share of `total` for a thread.
  static int64_t Begin(int64_t total, int thread, int threads) { return total * thread / threads; }
};

}  // namespace lapidary
