// What the leader tells every rank to do in one step, and what a step gives back. Plain structs:
// the contract between scheduler, executor and plan channel. New requests in full, known ones as
// differences.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "common/base/dtype.h"
#include "common/base/ids.h"
#include "engine/sampling_params.h"

namespace lapidary {

// A sequence the ranks have not seen, or have forgotten (preempted and resumed).
struct NewSequence {
  RequestId id;
  uint32_t choice = 0;          // part of the random counter
  std::vector<TokenId> tokens;  // prompt, then what was generated before (replay, preemption)
  int32_t prompt_len = 0;       // the first prompt_len of tokens are the prompt
  // A prefix whose KV is in the pages of the first row already (prefix cache): that row starts here
  // and brings the whole page table. Sliding entries behind the window are page 0, never read.
  int32_t cached_len = 0;
  bool needs_host_mask = false;  // its samples wait for a mask from the host: never two deep
  SamplingParams sampling;
};

// Which of a row's tokens need logits. A token nobody asked about costs no vocabulary product.
enum class LogitsMask : uint8_t {
  kNone,  // a prefill chunk that is not the last
  kLast,  // sample after the last token
  kAll,   // prompt logprobs: every token of the chunk (and sample after the last, if it is the end)
};

// Where a row's input tokens come from. Never an id that does not exist yet.
enum class InputSource : uint8_t {
  kKnown,    // tokens [start, start + len) of the sequence, all of them known
  kSampled,  // the one token that `source_row` of `source_step` sampled (two steps in flight)
};

struct PlanRow {
  RequestId seq;
  int32_t start = 0;  // position of the first token = cached_len before the step
  int32_t len = 0;
  InputSource source = InputSource::kKnown;
  uint64_t source_step = 0;
  int32_t source_row = 0;
  LogitsMask logits = LogitsMask::kNone;
  bool samples = false;          // choose a token after the last one
  bool needs_host_mask = false;  // such a row does not ride two deep
  // Appended to the sequence's page table; entry i of the table covers positions [16 i, 16 i + 16).
  // Sliding pages behind the window are freed by the scheduler and never read again; their entries
  // stay, stale.
  std::array<std::vector<PageId>, kKvFamilies> pages_added;
};

// A rank applies `finished`, then `added`, then computes `rows`: an id may be forgotten and begin
// anew in one plan.
struct StepPlan {
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::vector<NewSequence> added;
  std::vector<PlanRow> rows;
  std::vector<RequestId> finished;  // forget: finished, cancelled, or preempted
  bool shutdown = false;            // last message of an epoch
};

struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0;  // raw: before temperature, penalties and filters
};

// One token with what was asked to be known about it.
struct ScoredToken {
  TokenId id = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // descending; empty unless asked
};

struct StepResultRow {
  RequestId seq;
  std::vector<ScoredToken> sampled;  // 0 to k tokens
  // Of a kAll row: positions start + 1 to min(start + len, prompt_len - 1), in order. (Position 0
  // has nothing before it; what follows the prompt is sampled, not scored.)
  std::vector<ScoredToken> prompt_scored;
};

struct StepResult {
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::vector<StepResultRow> rows;  // in the order of the plan's rows
  double forward_seconds = 0;
  double sample_seconds = 0;
  double idle_seconds = 0;  // of the device, between the step before and this one
};

}  // namespace lapidary
