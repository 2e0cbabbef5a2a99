#include "kernels/thread_team.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <system_error>
#include <thread>

#include "kernels/huge_buffer.h"

namespace lapidary {

namespace {

// How long a thread waits awake. First with the core to itself; then it offers the core to others
// at every look, because with more ranks than cores the one we wait for may want to run right here.
constexpr std::chrono::microseconds kPauseTime{4};
constexpr std::chrono::microseconds kYieldTime{20};

// Returns once value != old, having slept if that took long.
template <class T>
T AwaitChange(const std::atomic<T>& value, T old) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  for (bool yield = false;;) {
    for (int i = 0; i < (yield ? 1 : 16); ++i) {
      const T now = value.load(std::memory_order_acquire);
      if (now != old) return now;
      _mm_pause();
    }
    const auto waited = Clock::now() - begin;
    if (waited > kYieldTime) break;
    yield = waited > kPauseTime;
    if (yield) sched_yield();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

void PinThisThread(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // may fail: then it stays unpinned
}

class PinnedTeam : public ThreadTeam {
 public:
  PinnedTeam(int threads, const std::vector<int>& cpus) : cpus_(cpus) {
    pthread_getaffinity_np(pthread_self(), sizeof creator_mask_, &creator_mask_);
    others_.reserve(threads - 1);
    for (int i = 1; i < threads; ++i) {
      try {
        others_.emplace_back([this, i] { Serve(i); });
      } catch (const std::system_error&) {
        break;
      }
    }
    size_ = 1 + static_cast<int>(others_.size());
  }

  ~PinnedTeam() override {
    work_ = nullptr;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& t : others_) t.join();
    if (pinned_ == std::this_thread::get_id()) {
      pthread_setaffinity_np(pthread_self(), sizeof creator_mask_, &creator_mask_);
    }
  }

  int size() const override { return size_; }

  void Run(const std::function<void(int)>& work) override {
    if (!cpus_.empty() && pinned_ != std::this_thread::get_id()) {
      PinThisThread(cpus_[0]);
      pinned_ = std::this_thread::get_id();
    }
    if (size_ == 1) {
      work(0);
      return;
    }
    work_ = &work;
    pending_.store(size_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    work(0);
    for (int left = pending_.load(std::memory_order_acquire); left != 0;) {
      left = AwaitChange(pending_, left);
    }
  }

 private:
  void Serve(int index) {
    pthread_setname_np(pthread_self(), "team");
    if (!cpus_.empty()) PinThisThread(cpus_[index]);
    for (uint32_t seen = 0;;) {
      seen = AwaitChange(generation_, seen);
      if (work_ == nullptr) return;
      (*work_)(index);
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
    }
  }

  const std::vector<int> cpus_;
  int size_ = 1;
  cpu_set_t creator_mask_;  // what a pinned caller gets back
  std::thread::id pinned_;
  const std::function<void(int)>* work_ = nullptr;  // published by generation_
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> pending_{0};
  std::vector<std::thread> others_;
};

}  // namespace

std::unique_ptr<ThreadTeam> ThreadTeam::Create(int threads, const std::vector<int>& cpus) {
  const int size = cpus.empty() ? std::max(threads, 1) : static_cast<int>(cpus.size());
  return std::make_unique<PinnedTeam>(size, cpus);
}

uint8_t* ThreadTeam::Scratch(size_t bytes) {
  static thread_local HugeBuffer buffer;
  return EnsureBytes(buffer, bytes);
}

}  // namespace lapidary
