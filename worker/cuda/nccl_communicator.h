// Collectives between GPUs over NCCL. One communicator is one epoch: a lost rank, an abort or an
// error of NCCL's ends it for good, and the group with it.
//
// Initialised without blocking, so that a rank that never comes is noticed (ModelRequest::ended,
// the deadline) and not waited for inside NCCL. A watch asks for asynchronous errors a few times a
// second. Operations go to the CudaStream given; errors stick to it. Sums are in NCCL's order:
// ranks get the same bytes, which order that is nobody promises. Small ones may be one-shot sums
// instead, if that was asked for.
//
// Operations: the engine thread. Abort: any thread.
#pragma once
#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "worker/comm/communicator.h"
#include "worker/cuda/one_shot_peers.h"

namespace lapidary {

struct NcclOptions {
  std::string id;  // of NewNcclId(), the same on all ranks of the epoch
  RankId rank;
  int size = 1;
  absl::Duration connect_timeout = absl::Minutes(2);
  std::function<absl::Status()> ended;        // asked while ranks are waited for
  std::function<void(absl::Status)> on_lost;  // from the watch
  // The same on all ranks: sums up to kOneShotMaxBytes without NCCL, where the GPUs can.
  bool one_shot = false;
  absl::Duration one_shot_patience = absl::Seconds(60);  // then a rank is lost
  std::function<void(const std::string&)> warn;          // served, but not as asked for
};

// A rendezvous: as bytes, to be carried to every rank.
absl::StatusOr<std::string> NewNcclId();
absl::Status NcclError(std::string_view operation, ncclResult_t result, ncclComm_t comm);

class NcclCommunicator final : public Communicator {
 public:
  // On the current device. Returns once all ranks have met: DEADLINE_EXCEEDED, or what `ended`
  // says.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(const NcclOptions& options);
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  RankId rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  // Device memory everywhere; the stream is a CudaStream.
  void AllReduceSum(float* data, int64_t count, Stream& stream) override;
  void AllReduceSumBf16(void* data, int64_t count, Stream& stream);
  void AllGather(const void* send, int64_t bytes, void* recv, Stream& stream) override;
  void Barrier(Stream& stream) override;
  // send_bytes[r] bytes for rank r, one behind the other in `send`; recv_bytes[r] from rank r, in
  // `recv` likewise. What experts on other ranks are sent and send back.
  void AllToAll(const void* send, const std::vector<int64_t>& send_bytes, void* recv,
                const std::vector<int64_t>& recv_bytes, Stream& stream);

  void Abort(const std::string& reason) override ABSL_LOCKS_EXCLUDED(mu_);
  // Why it is gone, else OK. For CudaStream::set_guard(): what an aborted kernel has left behind
  // looks like a result.
  absl::Status Ended() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  explicit NcclCommunicator(const NcclOptions& options) : options_(options) {}
  absl::Status Init();
  // One-shot sums from now on, if all ranks can.
  absl::Status MeetPeers();
  // Every rank's bytes, as many from each, on the host.
  absl::StatusOr<std::string> GatherOnHost(const std::string& own);
  // Waits while a call is in progress (non-blocking communicators say so).
  absl::Status Settle(std::string_view operation, ncclResult_t result, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Runs calls to NCCL unless the communicator is gone; what goes wrong sticks to the stream.
  void Run(std::string_view operation, Stream& stream, const std::function<ncclResult_t()>& calls)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Sum(void* data, int64_t count, bool bf16, Stream& stream) ABSL_LOCKS_EXCLUDED(mu_);
  void Watch();
  // Tells the others that nothing follows, and waits a moment for them to have read what was sent.
  // Whether all have come so far.
  bool Finish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const NcclOptions options_;
  mutable absl::Mutex mu_;
  ncclComm_t comm_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool met_ ABSL_GUARDED_BY(mu_) = false;  // all ranks have
  absl::Status end_ ABSL_GUARDED_BY(mu_);  // why it is gone
  // Null: all sums are NCCL's.
  std::unique_ptr<OneShotPeers> one_shot_ ABSL_GUARDED_BY(mu_);
  float* barrier_word_ = nullptr;  // device memory
  absl::Notification stop_watching_;
  std::thread watch_;
};

}  // namespace lapidary
