// A rank's side of a communicator.
#pragma once
#include <nccl.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "tests/support/cuda/nccl_segment.h"

namespace lapidary::standin {

class Comm {
 public:
  Comm(int ranks, int rank, int device, bool blocking);
  ~Comm();

  // Joins; returns without waiting for the others.
  ncclResult_t Join(const ncclUniqueId& id);
  // Waits until all have joined; an error if one dies first, or after an abort.
  ncclResult_t WaitForAll();
  // The same on a thread of its own: state() says how it goes.
  void WaitForAllInBackground();

  int ranks() const { return ranks_; }
  int rank() const { return rank_; }
  int device() const { return device_; }
  bool blocking() const { return blocking_; }
  Segment& segment() const { return *file_.get(); }
  std::string last_error();

  // ncclSuccess, ncclInProgress, or what went wrong.
  ncclResult_t state() const { return state_; }
  void SetState(ncclResult_t state) { state_ = state; }
  // The first error stays.
  void Fail(ncclResult_t error, const std::string& why);
  // A rank that has died or aborted, or -1; also_left: or ended well. Looks now and then only.
  int FindGone(bool also_left);
  void Lose(int rank);  // the communicator has failed: this rank is gone
  bool FindLoss(bool also_left);

  bool aborted() const { return aborted_; }
  void Abort();
  void Leave();

  // Chunks that this rank has taken part in; by the running operation alone.
  uint64_t chunks = 0;
  // A communicator that does not block may say "in progress" after any call: it does so once.
  std::atomic<int> answers_in_progress{0};

 private:
  bool Gone(int rank, bool also_left);

  const int ranks_, rank_, device_;
  const bool blocking_;
  SegmentFile file_;
  std::atomic<ncclResult_t> state_{ncclSuccess};
  std::atomic<bool> aborted_{false};
  // Without and with also_left, each by itself: who polls for errors would use up an operation's.
  std::atomic<double> last_look_ms_[2] = {0, 0};
  std::string name_;
  std::thread waiter_;
  std::mutex mu_;
  std::string last_error_;  // guarded by mu_
};

// Seconds after which an operation that nobody answers gives up: SIMT_NCCL_TIMEOUT_S (120).
double NcclTimeoutSeconds();

}  // namespace lapidary::standin
