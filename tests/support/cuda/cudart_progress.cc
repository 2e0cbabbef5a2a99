#include "tests/support/cuda/cudart_progress.h"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "tests/support/cuda/cudart_config.h"

namespace lapidary::standin {
namespace {

constexpr double kUrgentMs = 1;

struct Progress {
  std::mutex mu;
  std::condition_variable changed;
  bool started = false, stop = false, queued = false;
  std::thread thread;
};
Progress& TheProgress() {
  static Progress* progress = new Progress;
  return *progress;
}

void Loop() {
  Progress& p = TheProgress();
  std::unique_lock lock(p.mu);
  for (;;) {
    p.changed.wait(lock, [&] { return p.stop || p.queued; });
    if (p.stop) return;
    p.queued = false;
    lock.unlock();
    const bool more = RunOverdue(kUrgentMs, GetConfig().progress_ms);
    lock.lock();
    if (!more) continue;
    p.queued = true;
    p.changed.wait_for(lock, std::chrono::microseconds(500), [&] { return p.stop; });
  }
}

// At exit: no operation may run while the program's own objects go.
void Stop() {
  Progress& p = TheProgress();
  {
    std::lock_guard lock(p.mu);
    p.stop = true;
  }
  p.changed.notify_all();
  if (p.thread.get_id() != std::this_thread::get_id()) p.thread.join();
}

}  // namespace

void StartProgress() {
  if (GetConfig().progress_ms == 0) return;
  Progress& p = TheProgress();
  std::lock_guard lock(p.mu);
  if (!p.queued) {
    p.queued = true;
    p.changed.notify_all();
  }
  if (p.started) return;
  p.started = true;
  p.thread = std::thread(Loop);
  atexit(&Stop);
}

}  // namespace lapidary::standin
