// One request inside the scheduler, from submission until the last step that reads its pages is
// done.
#pragma once
#include <cstdint>
#include <string>
#include <utility>

#include "engine/fair_queue.h"
#include "engine/kv_manager.h"
#include "engine/scheduler.h"
#include "engine/step_plan.h"

namespace lapidary {

enum class RequestPhase : uint8_t {
  kWaiting,   // in the queue; may hold pages from before a pause
  kRunning,   // may own pages and rows in flight
  kPaused,    // waits for its reader; may hold pages until somebody needs them
  kRetiring,  // ended; its rows in flight still read its pages
};

// Who comes first among those that run, smaller first: interactive before batch, then who was
// admitted first. The first is planned first and never preempted, the last is preempted first.
using Rank = std::pair<Priority, uint64_t>;

// Lengths, in tokens: computed_len <= scheduled_len <= pending_len() <= end_len. With two steps in
// flight a row may run on a token that is still being sampled: then scheduled_len exceeds
// total_len() by one.
struct RequestState {
  NewSequence sequence;  // its tokens grow as they are sampled
  uint64_t order = 0;    // of submission; smaller is older: its place in its tenant's queue
  Priority priority = Priority::kInteractive;
  FairQueue::Tenant* tenant = nullptr;
  std::string cache_key;    // whose prefixes it shares
  int32_t charged_len = 0;  // tokens that the tenant has paid for
  double submit_time = 0;
  double deadline = 0;        // 0: none
  double queue_seconds = -1;  // until its first row; reported once
  bool queue_reported = false;
  int32_t cached_tokens = 0;     // of the prompt, found by the first row; reported with it
  uint64_t look_again_step = 0;  // waits: not asked before whether its prefix gives it room

  RequestPhase phase = RequestPhase::kWaiting;
  Rank rank = {};             // from its first admission on
  bool admitted = false;      // once
  int32_t computed_len = 0;   // KV written by completed steps
  int32_t scheduled_len = 0;  // KV written by these and by the steps in flight
  int32_t end_len = 0;        // total_len at which it ends for length
  int32_t scored_len = 1;     // prompt positions before it are scored (position 0 never is)
  int32_t lost_len = 0;       // was computed up to here, before its pages were taken
  int32_t rows_in_flight = 0;
  int32_t samples_in_flight = 0;  // of those rows, how many sample: tokens to come
  uint64_t sample_step = 0;       // where the newest of these tokens comes from
  int32_t sample_row = 0;
  bool known_to_ranks = false;  // they must be told to forget it
  // Running, with no more rows to come: when those in flight are done it is paused, or preempted.
  bool pausing = false;
  bool preempting = false;
  SequencePages pages;

  int32_t total_len() const { return static_cast<int32_t>(sequence.tokens.size()); }
  int32_t generated() const { return total_len() - sequence.prompt_len; }
  // With the tokens that are being sampled.
  int32_t pending_len() const { return total_len() + samples_in_flight; }
  int32_t unscheduled() const { return pending_len() - scheduled_len; }
  // How much of it may come from the prefix cache: what is still to be scored is computed.
  int32_t cacheable_len() const {
    const bool scores = sequence.sampling.prompt_logprobs >= 0 && scored_len < sequence.prompt_len;
    return (scores ? scored_len : total_len()) - 1;
  }
  bool wants_sample() const { return pending_len() < end_len; }
  bool leaving() const { return pausing || preempting; }
  bool holds_pages() const { return scheduled_len > 0; }
  // Its last row is in flight: it certainly ends when that is done.
  bool ending() const {
    return rows_in_flight > 0 && !wants_sample() && (samples_in_flight > 0 || unscheduled() == 0);
  }
  // Whether a row can be planned now, budget and pages permitting. What follows a token that is
  // being sampled waits for it when that token certainly ends the request, or when the host must
  // see it first.
  bool schedulable() const {
    if (leaving() || unscheduled() == 0) return false;
    return samples_in_flight == 0 || (wants_sample() && !sequence.needs_host_mask);
  }
};

}  // namespace lapidary
