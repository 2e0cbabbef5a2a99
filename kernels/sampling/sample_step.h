// What a GPU samples a step's rows from: plain structs, filled on the host and copied as they are,
// and what kernels leave for each other and for other ranks. worker/sampler.h says what it all
// means; worker/cuda/sample_plan.h fills it.
//
//   edits -> best of the shard -> [all ranks' messages] -> draw -> results
//                                                            \-> thresholds (threshold_step.h)
#pragma once
#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/sampling/penalties.h"

namespace lapidary {

// At most so many best tokens of a row, edited (a top-k) or as the model gave them (logprobs).
inline constexpr int kMaxListed = 256;
inline constexpr int kMaxSampleRanks = 8;
// A block looks at a tile of a row; 64 of them are the largest vocabulary.
inline constexpr int kTileColumns = 4096;
inline constexpr int kMaxTiles = 64;

// One row of a step.
struct SampleTask {
  int32_t logits_row = 0;
  int32_t listed = 0;      // how many best tokens to report, by the model's logits
  int32_t candidates = 0;  // how many best tokens to draw from, by edited logits; 0: samples not
  bool wants_logprobs = false;
  bool penalized = false;
  bool greedy = false;    // takes the best candidate
  int32_t listed_at = 0;  // where a message's entries have the two lists, which may be one
  int32_t candidates_at = 0;
  int32_t scored_id = -1;             // whose logprob is wanted; -1: nobody's
  int32_t threshold_row = -1;         // its place among the rows that thresholds decide
  int32_t top_at = 0;                 // where its `listed` tokens go in the results
  int32_t first_edit = 0, edits = 0;  // by ascending column

  Penalties penalties;
  float scale = 1;                      // log2(e) / temperature
  int32_t top_k = 0;                    // threshold rows: 0 is none
  double top_p = 1;                     // 1: none
  int64_t min_weight = 1;               // of the best token's 2^44
  uint64_t bits = 0;                    // random
  const int32_t* pending_id = nullptr;  // a token that is on its way and counts as output
  int32_t* id_out = nullptr;            // where the sampled token is put
};

// What happens to one logit of a row before it is sampled from. Neighbours of one column are one
// edit: their biases are added in order, the first has the rest.
struct TokenEdit {
  int32_t column = 0;  // in the shard
  float bias = 0;
  int32_t output_count = 0;
  bool in_prompt = false;
  bool forbidden = false;  // -inf whatever else
};
// The edit of a pending token that has no TokenEdit. column -1: there is none.
struct PendingEdit {
  int32_t column = -1;
  float raw = 0;
};

// One selection from one row of the shard.
struct ShardJob {
  int32_t task = 0;
  int32_t count = 0;  // best tokens wanted; 0: none
  bool wants_norm = false;
  bool edited = false;     // looks at edited logits
  int32_t list_at = 0;     // its tiles' lists in SampleStep::lists, `count` each
  int32_t message_at = 0;  // its list among the message's entries
};

// A token of a tile's list. Order: descending key, then ascending column.
struct TileEntry {
  uint32_t key = 0;  // 0: nobody
  int32_t column = 0;
};
// Sum of exp(x - max) over a tile.
struct TileNorm {
  float max = 0, sum = 0;
};

// A rank's message: a summary of each row, then the rows' lists.
struct ShardSummary {
  float max = 0, sum = 0;  // the norm of the shard, by the model's logits
  float scored = 0;        // the model's logit of scored_id, if it is here
  int32_t has_scored = 0;
};
struct ShardEntry {
  uint32_t key = 0;  // of the edited value; 0: nobody, and nobody after it
  int32_t id = -1;
  float raw = 0;  // the model's logit
  uint32_t unused = 0;
};

// The answer to a row.
struct SampleResult {
  int32_t id = -1;  // -1 unless it samples
  float logprob = 0;
  float scored_logprob = 0;
  int32_t listed = 0;  // so many of its tokens in `top` there are
};
struct TopToken {
  int32_t id = -1;
  float logprob = 0;
};

// Of all shards: the logprob of a logit x is x - max - log_sum.
struct RowNorm {
  float max = 0, log_sum = 0;
};

// One step, as every kernel gets it. All pointers are the device's.
struct SampleStep {
  const SampleTask* tasks = nullptr;  // [rows]
  const ShardJob* jobs = nullptr;
  const TokenEdit* edits = nullptr;
  int32_t rows = 0;

  float* logits = nullptr;  // [.., stride]; edited in place
  int64_t stride = 0;
  int32_t columns = 0;   // of this shard
  int32_t first_id = 0;  // of column 0
  int32_t rank = 0, ranks = 1;

  float* edit_raws = nullptr;      // [edits]: the model's logits of first edits
  PendingEdit* pending = nullptr;  // [rows]
  TileEntry* lists = nullptr;
  TileNorm* norms = nullptr;          // [jobs, tiles]
  unsigned char* messages = nullptr;  // [ranks]
  int64_t message_bytes = 0;
  RowNorm* row_norms = nullptr;     // [rows]
  SampleResult* results = nullptr;  // [rows]
  TopToken* top = nullptr;

  LAPIDARY_HOST_DEVICE int32_t tiles() const { return (columns + kTileColumns - 1) / kTileColumns; }
};
inline int64_t MessageBytes(int64_t rows, int64_t entries) {
  return rows * static_cast<int64_t>(sizeof(ShardSummary)) +
         entries * static_cast<int64_t>(sizeof(ShardEntry));
}

}  // namespace lapidary
