// What the engine thread is asked to do, from any thread: the only way in.
//
// Bounded by what its writers can add: a Submit says when the queue is full, and the stream then
// stops reading until the engine has taken everything; cancels are no more than submits, pauses no
// more than their client's reads.
#pragma once
#include <cstddef>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "engine/scheduler.h"

namespace lapidary {

class EngineInbox {
 public:
  struct PauseChange {
    RequestId id;
    bool pause = false;  // else resume
  };
  struct Batch {
    std::vector<EngineRequest> submits;  // in order of arrival
    std::vector<EngineEvent> refused;    // requests that were none: only to be reported
    std::vector<PauseChange> pauses;     // apply after the submits, in order
    std::vector<RequestId> cancels;      // apply after the submits
    bool drain = false;                  // from now on; stays
    absl::Status end;                    // not OK: stop at once, with this; stays
  };

  explicit EngineInbox(size_t capacity) : capacity_(capacity) {}

  // Takes the request in any case. False when full: send no more until `on_space`.
  bool Submit(EngineRequest request) ABSL_LOCKS_EXCLUDED(mu_);
  // The same for a request that is refused already.
  bool Refuse(EngineEvent event) ABSL_LOCKS_EXCLUDED(mu_);
  void Cancel(RequestId id) ABSL_LOCKS_EXCLUDED(mu_);
  void Pause(RequestId id) ABSL_LOCKS_EXCLUDED(mu_) { SetPaused(id, true); }
  void Resume(RequestId id) ABSL_LOCKS_EXCLUDED(mu_) { SetPaused(id, false); }
  // Finish what runs, then end.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);
  // End now. The first reason stays.
  void End(absl::Status why) ABSL_LOCKS_EXCLUDED(mu_);
  // Called by Take(), without the lock, when a full inbox has been emptied.
  void set_on_space(std::function<void()> on_space) ABSL_LOCKS_EXCLUDED(mu_);

  // Everything so far. Waits for something new, at most until `deadline`, when `wait` is set.
  Batch Take(bool wait, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void SetPaused(RequestId id, bool pause) ABSL_LOCKS_EXCLUDED(mu_);
  bool NoteArrival() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t capacity_;
  absl::Mutex mu_;
  Batch batch_ ABSL_GUARDED_BY(mu_);
  bool news_ ABSL_GUARDED_BY(mu_) = false;
  bool was_full_ ABSL_GUARDED_BY(mu_) = false;
  std::function<void()> on_space_ ABSL_GUARDED_BY(mu_);
};

}  // namespace lapidary
