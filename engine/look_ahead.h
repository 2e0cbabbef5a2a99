// Whether a request can be admitted without running out of pages later.
//
// With known ends the future is known: every running request takes one token a step, its global
// pages grow with it and come back at once when it ends, its sliding pages stay within the window.
// So the need of a set of requests over time is a sawtooth whose teeth stand where somebody ends,
// and its peak is found by looking at the ends alone. A request is admitted when the peak, with it,
// fits the pools.
//
// The ends are not known, only max_tokens is: most requests stop earlier, and a pool that reserves
// for what hardly anybody uses stands half empty. OutputShare learns what they use.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "engine/kv_manager.h"

namespace lapidary {

// Which share of what they may generate requests really do, from those that ended.
class OutputShare {
 public:
  // `initial`, 0 to 1: what is believed before, and counts as much as one request.
  explicit OutputShare(double initial) : initial_(initial) {}

  // A request ended by itself after `generated` of `allowed` tokens.
  void Observe(int32_t generated, int32_t allowed);
  // Mean and mean deviation of the last few dozen together: what all but some need.
  double share() const;
  // Positions of KV at the end of a request that has `total_len` tokens and may come to `end_len`:
  // the share of what is left, at least one page more, at most all of it. So the longer a request
  // goes on, the closer it is taken to come to its limit.
  int32_t ExpectedKvLen(int32_t total_len, int32_t end_len) const;

 private:
  const double initial_;
  double mean_ = 0;
  double deviation_ = 0;
  int64_t seen_ = 0;
};

// The most positions of KV that such a request can come to: its last token is sampled and never
// computed on.
int32_t LargestKvLen(int32_t total_len, int32_t end_len);

// The page need of a set of requests over time.
class LookAhead {
 public:
  // Pages of a request that ends come back so many steps after the next step could use them: with
  // two steps in flight one.
  LookAhead(const KvManager& kv, int32_t lag) : kv_(kv), lag_(lag) {}

  // A request that now has `len` tokens to hold KV for and at its end `end_len` >= len. It holds
  // `sliding_held` sliding pages, which a long chunk makes more than a window needs. Of its global
  // pages the first `shared_global` are counted elsewhere (AddFixed): others read them too.
  void Add(int32_t len, int32_t end_len, int32_t sliding_held, int32_t shared_global = 0);
  // Pages that never come back during the time looked at.
  void AddFixed(int family, int32_t pages) { fixed_[family] += pages; }

  // The largest need of each family at any time. Global is exact; sliding counts each request at
  // its own largest, which is at most a window and reached soon.
  // O(n log n) after Add(), so that one more of n sorted costs O(n).
  std::array<int64_t, kKvFamilies> Peak();
  bool Fits();  // within the pools

 private:
  struct Future {
    int32_t steps;  // until it ends
    int32_t len;
    bool operator<(const Future& other) const { return steps > other.steps; }
  };

  const KvManager& kv_;
  const int32_t lag_;
  std::vector<Future> futures_;  // the first sorted_ of them with the latest end first
  size_t sorted_ = 0;
  std::array<int64_t, kKvFamilies> fixed_ = {0, 0};
  int64_t sliding_ = 0;
};

}  // namespace lapidary
