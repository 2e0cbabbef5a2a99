// One thread that writes what streams have queued: the thread that brings tokens never waits for a
// socket, and a busy coordinator writes less often instead of falling behind.
//
// It goes over the streams that have something in passes. A pass of t seconds is followed by a
// pause of t (at most kLongestPause): writing takes half of the time at most, whatever a write
// costs on this machine and however many streams there are. What comes meanwhile joins the messages
// that wait. A few streams are written at once; hundreds on a full processor get the tokens of
// several steps in one message.
#pragma once
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace lapidary {

// Something that has queued data and can start to write it.
class WriteTarget {
 public:
  virtual ~WriteTarget() = default;
  // Called on the scheduler's thread, without its lock. Must not block.
  virtual void WriteNow() = 0;
};

class WriteScheduler {
 public:
  WriteScheduler();
  // Joins the thread; what waits then is not written.
  ~WriteScheduler();
  WriteScheduler(const WriteScheduler&) = delete;
  WriteScheduler& operator=(const WriteScheduler&) = delete;

  // Has `target` written in the next pass. Any thread; never blocks; may be called with the
  // target's lock held. To be called once per pass: a target added twice is called twice.
  void Add(std::shared_ptr<WriteTarget> target) ABSL_LOCKS_EXCLUDED(mu_);

  static constexpr absl::Duration kLongestPause = absl::Milliseconds(5);
  // Below, a pause costs more than it saves.
  static constexpr absl::Duration kShortestPause = absl::Microseconds(100);

 private:
  void Serve() ABSL_LOCKS_EXCLUDED(mu_);
  // The next pass; empty at the end.
  std::vector<std::shared_ptr<WriteTarget>> Take() ABSL_LOCKS_EXCLUDED(mu_);
  void Pause(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mu_);

  absl::Mutex mu_;
  absl::CondVar wake_;                      // signalled while idle_, and at the end
  bool idle_ ABSL_GUARDED_BY(mu_) = false;  // nothing to write: waits for an Add
  std::vector<std::shared_ptr<WriteTarget>> waiting_ ABSL_GUARDED_BY(mu_);  // in order of arrival
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: starts when everything else exists
};

}  // namespace lapidary
