// How the executor chooses where CUDA leaves a choice. Read from the environment once:
//   SIMT_ORDER=fwd|rev|rand  order of blocks and threads        SIMT_SEED=n  for rand
//   SIMT_ASYNC=lazy|eager    asynchronous copies and products land as late, or as early, as allowed
#pragma once
#include <cstdint>

namespace lapidary::simt {

enum class Order : uint8_t { kForward, kReverse, kRandom };

struct Policy {
  Order order = Order::kForward;
  uint64_t seed = 1;
  bool lazy = true;
};
// Changed by tests only, while nothing runs.
Policy& CurrentPolicy();

class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed * 0x9E3779B97F4A7C15u | 1) {}
  uint64_t Next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  uint32_t Below(uint64_t n) { return static_cast<uint32_t>(Next() % n); }

 private:
  uint64_t state_;
};

}  // namespace lapidary::simt
