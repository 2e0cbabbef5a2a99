// One-shot sums (kernels/comm/one_shot_all_reduce_cuda.h) between the GPUs of one host: every
// rank's mailbox, mapped by all of them. Off unless asked for: its memory ordering between devices
// is unproven.
//
// Owner: NcclCommunicator. Sum: the engine thread. Stop and Failed: any thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "kernels/comm/one_shot_all_reduce_cuda.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_stream.h"

namespace lapidary {

class OneShotPeers {
 public:
  // Every rank's bytes, as many from each, one behind the other.
  using Gather = std::function<absl::StatusOr<std::string>(const std::string& own)>;
  // On the current device; all ranks at once, and all come to the same. FAILED_PRECONDITION: these
  // ranks cannot, and why; otherwise an error of `gather`.
  static absl::StatusOr<std::unique_ptr<OneShotPeers>> Create(RankId rank, int size,
                                                              absl::Duration patience,
                                                              const Gather& gather);
  ~OneShotPeers();
  OneShotPeers(const OneShotPeers&) = delete;
  OneShotPeers& operator=(const OneShotPeers&) = delete;

  // data [count], in place; OneShotTakes() its bytes.
  void Sum(void* data, int64_t count, bool bf16, CudaStream& stream);
  // Frees kernels that wait; their results are worthless.
  void Stop();
  // UNAVAILABLE once a rank was waited for in vain.
  absl::Status Failed() const;

  // Two steps to the end, once the stream is done: a mailbox may not go while others map it.
  void CloseOthers();
  void AllHaveClosed() { all_have_closed_ = true; }

 private:
  struct Introduction;
  OneShotPeers(RankId rank, int size, absl::Duration patience);
  absl::Status MakeOwn(Introduction* own);
  absl::Status OpenOthers(const std::string& all);

  const RankId rank_;
  const absl::Duration patience_;
  OneShotParams params_;
  PinnedBuffer control_;
  bool all_have_closed_ = false;
};

}  // namespace lapidary
