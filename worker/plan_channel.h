// From the leader to every other rank: encoded step plans, in order, each exactly once.
//
// A ring of bytes that all ranks map, one writer and size - 1 readers. Messages are carried as they
// are (engine/plan_codec.h makes them) and may be larger than the ring: they flow through it.
// A rank that does not read holds the leader up, for `send_timeout` and not longer; a process that
// dies wakes everyone at the other ends.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lapidary {

class PlanSender {
 public:
  virtual ~PlanSender() = default;
  // Blocks while a rank lags a whole ring behind. DEADLINE_EXCEEDED names that rank; UNAVAILABLE
  // says who died. After an error the channel is of no more use.
  virtual absl::Status Send(std::string_view message) = 0;
  // From any thread: wakes and fails this end and all readers.
  virtual void Abort(const std::string& reason) = 0;
  // OK, or why the channel has ended: for a leader with nothing to send.
  virtual absl::Status status() const = 0;
};

class PlanReceiver {
 public:
  virtual ~PlanReceiver() = default;
  // Waits, without limit, for the next message. What was sent before the leader's end is still
  // delivered; then UNAVAILABLE with the reason.
  virtual absl::StatusOr<std::string> Receive() = 0;
  // From any thread: wakes and fails this end and all others.
  virtual void Abort(const std::string& reason) = 0;
};

struct PlanChannelOptions {
  std::string name;  // unique per group and epoch, other than the communicator's
  int rank = 0;      // 0 sends
  int size = 1;
  int64_t ring_bytes = 1 << 20;  // a power of two
  absl::Duration connect_timeout = absl::Seconds(30);
  absl::Duration send_timeout = absl::Seconds(60);
  // Told, on a thread of the channel's, that a process at another end has died; the channel has
  // failed by then. For a leader that waits for something else. May be empty.
  std::function<void(const std::string& reason)> on_peer_exit;
};

// Between processes of one host. Waits for every rank; the errors of ShmSegment::Meet.
absl::StatusOr<std::unique_ptr<PlanSender>> CreateShmPlanSender(const PlanChannelOptions& options);
absl::StatusOr<std::unique_ptr<PlanReceiver>> CreateShmPlanReceiver(
    const PlanChannelOptions& options);

// Within this process, for tests: receivers[i] is rank i + 1's. The same ring.
struct InprocPlanChannel {
  std::unique_ptr<PlanSender> sender;
  std::vector<std::unique_ptr<PlanReceiver>> receivers;
};
InprocPlanChannel CreateInprocPlanChannel(int size, int64_t ring_bytes = 1 << 20,
                                          absl::Duration send_timeout = absl::Seconds(60));

}  // namespace lapidary
