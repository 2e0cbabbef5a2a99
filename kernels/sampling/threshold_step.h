// Rows without a short list of candidates on a GPU, as worker/sampler_threshold.h does them: what
// is kept of a row is everything above a threshold and the first few, by id, of those equal to it.
// The threshold's 32 bits are found in three rounds of histograms over all shards, by count
// (top-k), then by mass (top-p). Then each shard says how much it keeps, all agree on the one in
// which the random point falls, and that rank finds the token.
#pragma once
#include <cstdint>

#include "kernels/sampling/sample_step.h"

namespace lapidary {

inline constexpr int kThresholdBuckets = 2048;
inline constexpr int kThresholdRounds = 3;

// A row's search, the same on every rank. Copied whole: it has no gaps.
struct GpuThresholdRow {
  int32_t task = 0;
  int32_t best_id = -1;  // of all shards; -1: no logit is above -inf
  float best_raw = 0;
  float max = 0;  // its edited value
  // Kept: keys above `key`, and the first `ties` of the `equal` ones.
  uint32_t key = 0;       // 0: everything
  int32_t searching = 0;  // a round has narrowed it, and there is one more
  int64_t ties = 0, equal = 0;
  // The search in progress: the bits found so far, and what of the target lies below them.
  uint32_t prefix = 0;
  int32_t owner = -1;  // the rank in whose shard the token is
  int64_t target = 0;
};
// What a shard keeps: mass above the threshold, and how many equal it.
struct ShardKept {
  int64_t above = 0, equal = 0;
};
struct FoundToken {
  int32_t id = -1;
  float raw = 0;
};

// The threshold rows of a step, or as many of them as are done at a time.
struct ThresholdStep {
  SampleStep step;
  GpuThresholdRow* rows = nullptr;  // [count]
  int32_t count = 0;
  // [ranks, count]; this rank writes its own, those of the others are gathered.
  int64_t* histograms = nullptr;  // of kThresholdBuckets each
  ShardKept* kept = nullptr;
  FoundToken* found = nullptr;
  ShardKept* tile_kept = nullptr;  // [count, tiles] of this shard
};

}  // namespace lapidary
