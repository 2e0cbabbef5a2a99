// The sampler on a GPU: the same tokens as the CPU's for the same logits, bit for bit, on any
// number of ranks; logprobs to 1e-5.
//
// A call enqueues everything and waits for nothing: one copy to the device (tasks, edits), about
// three kernels and one exchange for rows by candidates, about nine and up to eight exchanges when
// there are rows by thresholds, and one copy back. What the device leaves in pinned memory becomes
// `out` (and counted_in) on the thread that waits for the stream.
//
// Penalties read SampleRow::counts in the call, plus pending_id on the device.
//
// Ran on: emulation; no GPU yet
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/sampling/sample_cuda.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_stream.h"
#include "worker/cuda/nccl_communicator.h"
#include "worker/cuda/sample_plan.h"
#include "worker/sampler.h"

namespace lapidary {

struct CudaSamplerConfig {
  int64_t vocab = 0;   // at most 262,144
  int max_rows = 576;  // of a call, expected: sizes the memory
  int processors = 1;  // of the device
};

// Owned by whoever owns the stream, used on one thread. Lives until the stream has been waited for.
// Memory for max_rows rows with a few edits and the usual top-k is allocated at the beginning. A
// call that needs more (long penalty lists, prompt logprobs) waits for the stream and allocates; so
// it must not happen while a stream is captured, and it does not happen again for such a call.
class CudaSampler final : public Sampler {
 public:
  // INVALID_ARGUMENT for a vocabulary or group that is too large; RESOURCE_EXHAUSTED.
  // `ranks` (null: one) outlives it.
  static absl::StatusOr<std::unique_ptr<CudaSampler>> Create(NcclCommunicator* ranks,
                                                             const CudaSamplerConfig& config);
  // `stream` is a CudaStream. Reports at most 256 top logprobs a row.
  void Sample(const LogitsView& logits, std::vector<SampleRow> rows, Stream& stream,
              std::vector<SampledRow>* out) override;

  int64_t device_bytes() const;

 private:
  // What a call leaves on the host until the stream has passed it. Calls on their way have one
  // each: two for two steps, more when a step is sampled in slices.
  struct Call {
    PinnedBuffer input, output;
    std::vector<SampleRow> rows;
    std::vector<int32_t> top_at;
    bool busy = false;
  };
  // Where things are in the two blocks that are copied.
  struct Layout {
    int64_t jobs = 0, edits = 0, edited = 0, input_bytes = 0;
    int64_t top = 0, output_bytes = 0;
  };

  CudaSampler(NcclCommunicator* ranks, const CudaSamplerConfig& config)
      : ranks_(ranks), config_(config) {}
  int rank() const { return ranks_ == nullptr ? 0 : ranks_->rank().value; }
  int ranks() const { return ranks_ == nullptr ? 1 : ranks_->size(); }

  Call& FreeCall();
  Layout LayOut() const;
  absl::Status Reserve(const Layout& layout, Call& call, CudaStream& stream);
  absl::Status Enqueue(const LogitsView& logits, Range shard, Call& call, CudaStream& stream);
  absl::Status EnqueueGroups(const SampleStep& step, const std::vector<JobGroup>& groups,
                             CudaStream& stream);
  absl::Status EnqueueThresholds(const SampleStep& step, CudaStream& stream);
  void Gather(void* all, int64_t bytes, CudaStream& stream);
  static void Deliver(const Call& call, std::vector<SampledRow>* out);

  NcclCommunicator* const ranks_;
  const CudaSamplerConfig config_;
  SamplePlan plan_;  // of the call at hand
  std::vector<std::unique_ptr<Call>> calls_;
  // The device's, used by one call after the other as the stream comes to it.
  DeviceBuffer input_, output_, lists_, messages_, row_norms_, norms_, edit_raws_, pending_;
  DeviceBuffer threshold_rows_, histograms_, kept_, found_, tile_kept_;
};

}  // namespace lapidary
