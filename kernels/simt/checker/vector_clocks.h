// Who knows of whose accesses: vector clocks of one block.
//
// Time is a generation and an epoch. A generation ends when all live threads of the block meet:
// everything before is then known to everybody, and no clock is needed. Within a generation each
// agent counts its own epochs, and clocks exist only where a part of the block has synchronised.
// Agents are the threads, then the mbarriers (bulk copies write in their name), then the warps
// (their warpgroup products read in theirs).
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace lapidary::simt {

inline constexpr uint32_t kMaxMbarriers = 64, kMaxWarps = 32;

// The latest epoch known of each agent. Shared until somebody changes it.
class Clock {
 public:
  explicit Clock(size_t agents) : at_(agents, 0) {}

  uint32_t operator[](uint32_t agent) const { return at_[agent]; }
  void Raise(uint32_t agent, uint32_t epoch) {
    if (at_[agent] < epoch) at_[agent] = epoch;
  }
  void Join(const Clock& other) {
    for (size_t i = 0; i < at_.size(); ++i) at_[i] = at_[i] < other.at_[i] ? other.at_[i] : at_[i];
  }

 private:
  std::vector<uint32_t> at_;
};
using SharedClock = std::shared_ptr<Clock>;

class VectorClocks {
 public:
  // Generations of a block begin at `generation`; they never repeat.
  void BeginBlock(uint32_t threads, uint32_t generation);
  void BeginGeneration(uint32_t generation) { generation_ = generation; }

  uint32_t generation() const { return generation_; }
  uint32_t agents() const { return agents_; }
  uint32_t MbarrierAgent(uint32_t i) const { return threads() + i; }
  uint32_t WarpAgent(uint32_t warp) const { return threads() + kMaxMbarriers + warp; }
  uint32_t threads() const { return static_cast<uint32_t>(threads_.size()); }
  uint32_t epoch(uint32_t thread) { return Own(thread).epoch; }

  // Whether `thread` knows what `agent` did in this generation at `epoch`.
  bool Knows(uint32_t thread, uint32_t agent, uint32_t epoch) {
    if (agent == thread) return true;
    const SharedClock& known = Own(thread).known;
    return known && (*known)[agent] >= epoch;
  }

  // All of `lanes` of the warp learn what each of them knows.
  void SyncWarp(uint32_t warp, uint32_t lanes);
  // `waited` learn what all of `arrived` know.
  void Meet(const std::vector<uint32_t>& arrived, const std::vector<uint32_t>& waited);
  // What `thread` knows, itself included, goes into `clock`.
  void Release(uint32_t thread, SharedClock* clock);
  void Acquire(uint32_t thread, const SharedClock& clock);
  // `thread` learns of one thing that an agent did.
  void Learn(uint32_t thread, uint32_t agent, uint32_t epoch);
  // A copy of what `thread` knows; it goes on with a new epoch.
  SharedClock Snapshot(uint32_t thread);

  SharedClock NewClock() const { return std::make_shared<Clock>(agents_); }

 private:
  struct ThreadClock {
    uint32_t generation = 0;
    uint32_t epoch = 1;
    SharedClock known;  // null: nothing in this generation
  };
  ThreadClock& Own(uint32_t thread) {
    ThreadClock& t = threads_[thread];
    if (t.generation != generation_) {
      t.generation = generation_;
      t.known.reset();
    }
    return t;
  }

  uint32_t generation_ = 0;
  uint32_t agents_ = 0;
  std::vector<ThreadClock> threads_;
};

}  // namespace lapidary::simt
