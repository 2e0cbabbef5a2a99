// Decides what the group computes next. A library: no I/O, no clock, no threads, no device. The
// leader drives it; so do tests.
//
//   Submit / Pause / Resume / Cancel  ->  Plan()  ->  (the ranks run the step)  -> Complete(result)
//
// A request ends in exactly one event whose `finish` is not kNone; nothing about it follows.
//
// Owner: the engine thread. Invariants: engine/README.md.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/step_plan.h"

namespace lapidary {

struct SchedulerConfig {
  std::array<int32_t, kKvFamilies> pages = {0, 0};  // pool sizes; 0 with no layer of that family
  int32_t window = 0;                               // of the sliding family; 0: no sliding layers
  int32_t max_context = 0;                          // tokens of prompt and output
  int32_t max_running = 64;                         // sequences in a step
  int32_t max_step_tokens = 512;                    // token budget of a step
  int32_t max_queued = 4096;                        // beyond: RESOURCE_EXHAUSTED
  int64_t max_queued_tokens = 0;                    // of those that wait; 0: not limited
  int32_t max_in_flight = 1;                        // steps submitted and not completed, 1 or 2
  // Prompt chunks are cut so that a step is expected to stay under it, by the measured cost of
  // earlier steps. Never below one page of prompt, nor a quarter of the step's time. 0: by the
  // token budget alone.
  double step_seconds_target = 0;
  // Shares of tenants that wait, by name; 1 for those not named.
  std::map<std::string, double> tenant_weights;
  // Of the tokens that requests may generate, the share that they are taken to use at admission
  // until some have ended and the truth is known. 1: everybody's whole max_tokens is reserved.
  double expected_output_share = 0.5;
  bool prefix_cache = false;
  uint64_t epoch = 1;
};

// Interactive work is admitted before batch work, and never preempted for it.
enum class Priority : uint8_t { kInteractive, kBatch };
inline constexpr int kPriorities = 2;

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };

// A request as the group receives it. `tokens` is prompt then already generated tokens.
struct EngineRequest {
  NewSequence sequence;
  double submit_time = 0;  // seconds, given by the caller; only subtracted
  Priority priority = Priority::kInteractive;
  std::string tenant;  // whose fair share pays; empty is a tenant too
  // On the clock of submit_time: a request that still waits then ends with DEADLINE_EXCEEDED, and
  // one that runs is cancelled. 0: none.
  double deadline = 0;
  // Only requests with the same key share cached prefixes: tenant salt, adapter, image fingerprint.
  std::string cache_key;
};

// What happened to one request in a step.
struct EngineEvent {
  RequestId id;
  std::vector<ScoredToken> tokens;         // new, in order
  std::vector<ScoredToken> prompt_scored;  // positions 1.. as they become known
  FinishReason finish = FinishReason::kNone;
  TokenId stop_id = -1;        // the stop id that ended it
  absl::Status error;          // with kError
  double queue_seconds = -1;   // submission to first row; in the request's first event with a row
  int32_t cached_tokens = -1;  // of the prompt, found in the prefix cache; in that same event
  double retry_after_seconds = 0;  // of a refusal, when it helps to wait; the leader fills it
};

// Numbers for metrics, cheap to copy.
struct EngineStats {
  int32_t waiting = 0;
  int32_t running = 0;
  int32_t paused = 0;
  int32_t waiting_batch = 0;  // of them, batch work
  int32_t running_batch = 0;
  int64_t waiting_tokens = 0;
  std::array<int32_t, kKvFamilies> pages_used = {0, 0};    // by live requests
  std::array<int32_t, kKvFamilies> pages_cached = {0, 0};  // by nobody, kept for their prefix
  std::array<int32_t, kKvFamilies> pages_total = {0, 0};
  uint64_t preemptions = 0;
  uint64_t recomputed_tokens = 0;     // computed again after a preemption or a pause
  uint64_t prefix_lookup_tokens = 0;  // prompt tokens of requests that asked the prefix cache
  uint64_t prefix_hit_tokens = 0;     // of them, found there
  uint64_t prefix_evicted_pages = 0;
  uint64_t steps = 0;
  uint64_t decode_rows = 0;     // summed over steps
  uint64_t prefill_tokens = 0;  // summed over steps

  bool operator==(const EngineStats&) const = default;
};

class Scheduler {
 public:
  static std::unique_ptr<Scheduler> Create(const SchedulerConfig& config);
  virtual ~Scheduler() = default;

  // INVALID_ARGUMENT for what can never fit (says needed and available), RESOURCE_EXHAUSTED when
  // the queue is full, ALREADY_EXISTS for a live id.
  virtual absl::Status Submit(EngineRequest request, double now) = 0;
  // Ends a request; its pages are freed once no submitted step reads them. Unknown ids are ignored.
  virtual void Cancel(RequestId id) = 0;
  // Plans no more of a request; what steps in flight sample is still reported. Its pages stay until
  // somebody lacks pages: then they are taken, before anybody is preempted, and its tokens kept.
  // Unknown ids are ignored.
  virtual void Pause(RequestId id) = 0;
  // Queues a paused request again in its old place: it goes on, or is recomputed when its pages
  // were taken. Unknown ids and requests that are not paused are ignored.
  virtual void Resume(RequestId id) = 0;
  // The next step, or nothing when there is nothing to compute (or enough is in flight).
  virtual std::optional<StepPlan> Plan(double now) = 0;
  // Results of the oldest step in flight. Events in the plan's row order, then cancellations.
  virtual std::vector<EngineEvent> Complete(const StepResult& result, double now) = 0;
  // Events that no step brings: what was cancelled while nothing is in flight. Ask after Cancel()
  // and whenever Plan() returned nothing; otherwise the next Complete() has them.
  virtual std::vector<EngineEvent> TakeEvents() = 0;
  // True when no request is waiting, running, paused or retiring.
  virtual bool idle() const = 0;
  // True when there is more than paused requests: Plan() or Complete() will bring something.
  virtual bool has_work() const = 0;
  virtual EngineStats stats() const = 0;
  // When a refused client may try again: what waits, at the pace of the last steps. At least 1.
  virtual double RetryAfterSeconds() const { return 1; }
};

}  // namespace lapidary
