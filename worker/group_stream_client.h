// A worker's stream to the coordinator: what both say to each other, nothing of what it means.
//
// Send() from any thread; the handlers run on gRPC's threads and must not block. Outgoing messages
// wait in a bounded queue: a coordinator that does not read holds the sender up, then fails it.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lapidary/cluster/v1/cluster.pb.h"

namespace lapidary {

class GroupStreamClient {
 public:
  struct Handlers {
    // One message. False: read no further until ResumeReading().
    std::function<bool(const cluster::v1::ConnectResponse&)> on_message;
    // Once: the stream has ended, with the coordinator's status. Nothing follows.
    std::function<void(const absl::Status&)> on_end;
  };
  struct Options {
    std::string address;  // host:port
    absl::Duration connect_timeout = absl::Seconds(60);
    size_t max_queued = 1024;                         // outgoing messages
    absl::Duration send_timeout = absl::Seconds(30);  // in a full queue
    std::function<bool()> stop_requested;             // ends the dialling early; may be empty
  };

  // Dials, again and again until connect_timeout, and says hello with `first`. UNAVAILABLE names
  // the address; CANCELLED when asked to stop.
  static absl::StatusOr<std::unique_ptr<GroupStreamClient>> Connect(
      const Options& options, const cluster::v1::ConnectRequest& first, Handlers handlers);
  // Ends the stream hard if Finish() has not been called, and waits until no handler runs.
  virtual ~GroupStreamClient() = default;

  // Queues one message. UNAVAILABLE once the stream has ended, DEADLINE_EXCEEDED when the queue has
  // stayed full.
  virtual absl::Status Send(cluster::v1::ConnectRequest message) = 0;
  // A message that has been sent, for its memory: to be overwritten whole. Empty if there is none.
  virtual cluster::v1::ConnectRequest TakeSpare() = 0;
  virtual void ResumeReading() = 0;
  // Sends what is queued, says goodbye, and waits for the coordinator's; hard after `timeout`.
  virtual void Finish(absl::Duration timeout) = 0;
};

}  // namespace lapidary
