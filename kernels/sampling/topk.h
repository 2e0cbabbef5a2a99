// What sampling needs of one row shard of logits [n] fp32: its best k, its normaliser, and what
// lies above a threshold. Shards are merged by whoever has them all; the results are built so that
// it can.
//
// Everything is a function of the row alone: not of the number of threads, the instruction set, or
// what else is in the batch. Sums run in chunks of kNormChunk, in order, in double.
//
// -infinity marks a token that may not be chosen: it is never a candidate and has no mass. NaN is
// never a candidate either, but makes the sum NaN, so that a broken row is noticed.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/thread_team.h"

namespace lapidary {

struct Candidate {
  float logit = 0;
  int32_t id = 0;
};
// The order of candidates: the larger logit, then the smaller id. Total, so a merged top-k does not
// depend on how the row was cut.
inline bool Better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Sum of exp((x - max) / temperature) over a shard. Empty or all -infinity: max -infinity, sum 0.
struct ShardNorm {
  float max = -std::numeric_limits<float>::infinity();
  double sum = 0;
};
// Of two shards together. Merge shards in the order of their ids to get the same bits everywhere.
ShardNorm Merge(const ShardNorm& a, const ShardNorm& b, float inverse_temperature);
// log of the sum of exp(x / temperature): the logprob of x at that temperature is
// x * inverse_temperature - LogSumExp. -infinity for an empty shard.
inline double LogSumExp(const ShardNorm& norm, float inverse_temperature) {
  return norm.sum > 0 || std::isnan(norm.sum)
             ? double{norm.max} * inverse_temperature + std::log(norm.sum)
             : -std::numeric_limits<double>::infinity();
}

inline constexpr int64_t kNormChunk = 4096;

// The best k of logits [n], best first; fewer when there are fewer. The id of logits[i] is
// first_id + i. One pass: 64 logits a compare against a threshold that rises. Any k; meant for up
// to 1024 (k == 1 has its own path, for greedy rows).
void SelectTopK(const float* logits, int64_t n, int32_t first_id, int k,
                std::vector<Candidate>& out);

// max exact; each exp within 2 units in the last place of fp32.
ShardNorm SumExp(const float* logits, int64_t n, float inverse_temperature);

// How many logits are >= threshold, and their mass: sum of exp((x - max) * inverse_temperature),
// max being the maximum of the whole row (of all shards), so that shards just add.
struct TailMass {
  int64_t count = 0;
  double mass = 0;
};
TailMass MassAtLeast(const float* logits, int64_t n, float threshold, float max,
                     float inverse_temperature);

// All logits >= threshold in the order of their ids, at most `limit`: false if there are more (then
// `out` has the first `limit`). For min-p, whose threshold is known once the maximum is.
bool CollectAtLeast(const float* logits, int64_t n, int32_t first_id, float threshold,
                    int64_t limit, std::vector<Candidate>& out);

// One row of a batch: what is wanted, and the answers.
struct RowSelection {
  const float* logits = nullptr;
  int64_t n = 0;
  int32_t first_id = 0;
  int top_k = 0;  // 0: no candidates wanted
  bool wants_norm = false;
  float inverse_temperature = 1.0f;  // of the norm

  std::vector<Candidate> best;  // best first
  ShardNorm norm;
};
// SelectTopK and SumExp for many rows at once: rows, and parts of rows when there are fewer rows
// than threads, are shared out. The same bits as the functions above.
void SelectRows(ThreadTeam& team, std::vector<RowSelection>& rows);

}  // namespace lapidary
