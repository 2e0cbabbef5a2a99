// Collectives between the ranks of a group, enqueued on a stream. Implementations: shared memory
// (CPU ranks on one host), inproc (threads, for tests); NCCL follows.
//
// Every rank calls the same operations in the same order with the same sizes. Results are the same
// bytes on every rank: sums are taken in rank order.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "worker/stream.h"

namespace lapidary {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual RankId rank() const = 0;
  virtual int size() const = 0;

  // data [count] fp32, in place: the sum over ranks. A no-op for one rank.
  virtual void AllReduceSum(float* data, int64_t count, Stream& stream) = 0;
  // recv [size * bytes]: rank r's `bytes` at r * bytes. send may lie inside recv at its own place.
  virtual void AllGather(const void* send, int64_t bytes, void* recv, Stream& stream) = 0;
  virtual void Barrier(Stream& stream) = 0;

  // Fails every pending and later operation with `reason` (UNAVAILABLE); from any thread.
  virtual void Abort(const std::string& reason) = 0;
  // From now on a rank silent for so long ends the group. Long while ranks load, short afterwards.
  virtual void set_operation_timeout(absl::Duration) {}
};

// `size` communicators that meet in this process.
std::vector<std::unique_ptr<Communicator>> CreateInprocCommunicators(int size);

struct ShmCommOptions {
  std::string name;  // the segment, unique per group and epoch; rank 0 creates and unlinks it
  RankId rank;
  int size = 1;
  absl::Duration connect_timeout = absl::Seconds(30);
  absl::Duration operation_timeout = absl::Seconds(60);  // a rank silent for so long is dead
};
// Waits for every rank; DEADLINE_EXCEEDED names the ranks that never came.
absl::StatusOr<std::unique_ptr<Communicator>> CreateShmCommunicator(const ShmCommOptions& options);

}  // namespace lapidary
