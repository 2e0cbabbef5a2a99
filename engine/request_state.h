// One request inside the scheduler, from submission until the last step that reads its pages is
// done.
#pragma once
#include <cstdint>

#include "engine/kv_manager.h"
#include "engine/step_plan.h"

namespace lapidary {

enum class RequestPhase : uint8_t {
  kWaiting,   // in the queue, owns no pages
  kRunning,   // may own pages and rows in flight
  kPaused,    // waits for its reader, owns no pages
  kRetiring,  // ended; its rows in flight still read its pages
};

// Lengths, in tokens: computed_len <= scheduled_len <= pending_len() <= end_len. With two steps in
// flight a row may run on a token that is still being sampled: then scheduled_len exceeds
// total_len() by one.
struct RequestState {
  NewSequence sequence;  // its tokens grow as they are sampled
  uint64_t order = 0;    // of submission; smaller is older
  double submit_time = 0;
  double queue_seconds = -1;  // until its first row; reported once
  bool queue_reported = false;

  RequestPhase phase = RequestPhase::kWaiting;
  int32_t computed_len = 0;   // KV written by completed steps
  int32_t scheduled_len = 0;  // KV written by these and by the steps in flight
  int32_t end_len = 0;        // total_len at which it ends for length
  int32_t scored_len = 1;     // prompt positions before it are scored (position 0 never is)
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
  bool wants_sample() const { return pending_len() < end_len; }
  bool leaving() const { return pausing || preempting; }
  // Whether a row can be planned now, budget and pages permitting. What follows a token that is
  // being sampled waits for it when that token certainly ends the request, or when the host must
  // see it first.
  bool schedulable() const {
    if (leaving() || unscheduled() == 0) return false;
    return samples_in_flight == 0 || (wants_sample() && !sequence.needs_host_mask);
  }
};

}  // namespace lapidary
