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

// Lengths, in tokens: computed_len <= scheduled_len <= total_len() <= end_len.
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
  bool sample_in_flight = false;  // the next token is being computed: nothing to schedule
  bool known_to_ranks = false;    // they must be told to forget it
  bool pausing = false;           // runs, and is paused when its rows in flight are done
  SequencePages pages;

  int32_t total_len() const { return static_cast<int32_t>(sequence.tokens.size()); }
  int32_t generated() const { return total_len() - sequence.prompt_len; }
  int32_t unscheduled() const { return total_len() - scheduled_len; }
  bool wants_sample() const { return total_len() < end_len; }
};

}  // namespace lapidary
