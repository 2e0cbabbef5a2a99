// Draws tokens for rows that no short list of candidates decides: no top-k, or a very large one.
//
// What is kept of a row is a beginning of the order of tokens: everything above a threshold value
// and the first few, by id, of those equal to it. The threshold's 32 bits are found in three rounds
// of histograms over all shards, by count (top-k), then by mass (top-p). Then each shard says how
// much it keeps, all ranks agree on the shard in which the random point falls, and its rank finds
// the token. Exact, with a few kilobytes exchanged for each row and round.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/thread_team.h"
#include "worker/comm/communicator.h"
#include "worker/sampler_edits.h"
#include "worker/sampler_filter.h"
#include "worker/stream.h"

namespace lapidary {

// A row on this rank. Filled, apart from `best` and the result, before Enqueue(); `best` by work
// that runs before it on the stream.
struct ThresholdRow {
  const float* logits = nullptr;  // this shard's, edited
  const std::vector<LogitEdit>* edits = nullptr;
  int64_t columns = 0;
  TokenId first_id = 0;  // of column 0
  Filter filter;
  uint64_t bits = 0;    // random
  TokenCandidate best;  // of all shards; id -1: no logit is above -inf

  // The result: id -1 when no logit is above -inf.
  TokenId id = -1;
  float raw = 0;  // the model's logit of it
};

class ThresholdSampler {
 public:
  ThresholdSampler(ThreadTeam& team, Communicator& comm) : team_(team), comm_(comm) {}
  // Enqueues the work on the rows, which must live until it has run.
  void Enqueue(std::shared_ptr<std::vector<ThresholdRow>> rows, Stream& stream);

 private:
  ThreadTeam& team_;
  Communicator& comm_;
};

}  // namespace lapidary
