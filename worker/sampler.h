// Sharded logits to the same token ids on every rank.
//
// Each rank selects candidates of its vocabulary shard; ranks exchange candidates and normalisers
// and each arrives at the same id. Rows without a top-k up to 256 find their thresholds together
// instead (sampler_threshold.h): a few kilobytes, never the row. Exact always.
//
// Order, on one row: logit bias, penalties, suppressed tokens and stop ids before min_tokens;
// temperature; top-k; top-p of the mass that top-k left; min-p of the best token's probability. The
// kept tokens, by ascending id, share [0, 1) by their probabilities; 64 bits of Philox say where.
// Temperature 0 takes the best, the lower id of equals. Logprobs are of the logits as they came.
// The same logits and seed give the same token for any number of ranks, threads and other rows.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "engine/sampling_params.h"
#include "engine/step_plan.h"
#include "kernels/thread_team.h"
#include "worker/comm/communicator.h"
#include "worker/model_runner.h"

namespace lapidary {

// How often each token occurred: prompt (for repetition) and output (for all penalties).
struct TokenCounts {
  std::unordered_map<TokenId, int32_t> output;
  std::unordered_map<TokenId, int32_t> prompt;  // filled only with a repetition penalty
};

// One row of logits and what is wanted of it.
struct SampleRow {
  int32_t logits_row = 0;
  bool samples = false;                    // choose the token at `position`
  const SamplingParams* params = nullptr;  // outlives the step
  const TokenCounts* counts = nullptr;     // state before the token; outlives the step
  // What the stream leaves for the next step, before the host knows the token. Neither needs to be
  // there; both outlive the step.
  TokenCounts* counted_in = nullptr;  // the sampled token is added to the output
  TokenId* id_out = nullptr;          // device memory: it is put there
  // Device memory with the one token that an earlier step samples for this sequence and that
  // `counts` does not have yet when Sample() is called: it counts as output too, exactly once.
  // Null: there is none. For samplers that read `counts` in the call (the GPU's); those that read
  // it on the stream, behind the step that adds to it (the CPU's), find the token there and ignore
  // this.
  const TokenId* pending_id = nullptr;
  uint32_t choice = 0;
  int32_t position = 0;       // absolute position of the token this row predicts
  int32_t generated = 0;      // tokens generated before it (min_tokens)
  TokenId scored_token = -1;  // >= 0: the logprob of this token is wanted (prompt logprobs)
  int32_t top_logprobs = 0;   // how many best tokens to report
  bool wants_logprob = false;
};

struct SampledRow {
  ScoredToken sampled;  // id -1 unless samples
  ScoredToken scored;   // id -1 unless scored_token >= 0
};

class Sampler {
 public:
  static std::unique_ptr<Sampler> Create(ThreadTeam& team, Communicator& comm, int64_t vocab);
  virtual ~Sampler() = default;
  // Enqueues on the stream after the forward that fills `logits`; `out` is valid after the stream
  // has been synchronised. Every rank passes the same rows, no logits row twice. The logits are
  // changed. Any values are taken: NaN counts as -inf, a row of nothing else gives token 0.
  virtual void Sample(const LogitsView& logits, std::vector<SampleRow> rows, Stream& stream,
                      std::vector<SampledRow>* out) = 0;
};

}  // namespace lapidary
