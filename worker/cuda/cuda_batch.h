// A step's batch as the GPU's operations read it: one block of device memory, written by one copy.
//
// Upload order in the block: what a recorded step points at comes first and at places that depend
// on the padded sizes alone; page tables, whose length varies, come last.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/paged_attention_cuda.h"
#include "worker/backend.h"
#include "worker/batch_check.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_stream.h"

namespace lapidary {

// Of one family, in device memory.
struct FamilyBatch {
  const int32_t* page_table = nullptr;    // all sequences' entries, one behind the other
  const int32_t* page_of = nullptr;       // [tokens] that each token is written to; -1: none
  const AttentionRun* decode = nullptr;   // runs of one token
  const AttentionRun* prefill = nullptr;  // longer ones
};

struct CudaBatch final : DeviceBatch {
  // Base: tokens and wanted, padded when the step is recorded.
  int64_t real_tokens = 0;
  // All tokens are wanted and each is its sequence's only one, so that the step can be recorded.
  bool decode_only = false;
  bool record = false;  // a step of padding, run to be recorded
  // The arrays are those of the wanted tokens alone (KeepWanted).
  bool is_part = false;

  const int32_t* known_ids = nullptr;      // [tokens]
  const int32_t* sampled_from = nullptr;   // [tokens], or null: all are known
  int32_t* ids = nullptr;                  // [tokens]: resolved on the stream
  const int32_t* positions = nullptr;      // [tokens]
  const int32_t* wanted_tokens = nullptr;  // [wanted]
  std::array<FamilyBatch, kKvFamilies> families;
  int decode_runs = 0, prefill_runs = 0;
  // Blocks of prefill runs by tokens a block takes.
  struct Blocks {
    int tokens = 0;
    const PrefillBlock* blocks = nullptr;
    int count = 0;
  };
  std::vector<Blocks> prefill_blocks;
  const Blocks& BlocksOf(int block_tokens) const;
};

// Makes batches and copies them up. Buffers for the largest batch are made once.
class BatchUploader {
 public:
  struct Options {
    BatchLimits limits;
    int64_t max_sequences = 0;
    int64_t max_table_entries = 0;  // of a family's page tables, all sequences together
    std::vector<int> block_tokens;  // the cuts of prefill runs that the model's layers want
    std::vector<int64_t> buckets;   // padded sizes of recorded steps, ascending; empty: none
  };
  static absl::StatusOr<BatchUploader> Create(const Options& options);

  // The whole batch and, when not all tokens are wanted, the part of those that are. Enqueues one
  // copy. INVALID_ARGUMENT as MakeCpuBatch.
  struct Uploaded {
    std::shared_ptr<CudaBatch> whole, part;
  };
  absl::StatusOr<Uploaded> Upload(const HostBatch& host, CudaStream& stream);

  // A decode step of `tokens` padding rows.
  absl::StatusOr<std::shared_ptr<CudaBatch>> Padding(int64_t tokens, CudaStream& stream);
  const std::vector<int64_t>& buckets() const { return options_.buckets; }

  void set_pages(const std::array<int32_t, kKvFamilies>& pages) { options_.limits.pages = pages; }
  int64_t device_bytes() const { return device_.bytes(); }

 private:
  // A place for one copy to start from; taken again when the copy before it is done.
  struct Slot {
    PinnedBuffer memory;
    CudaEvent copied;
  };

  int64_t PaddedTokens(const HostBatch& host) const;
  absl::StatusOr<Uploaded> UploadPadded(const HostBatch& host, int64_t padded, CudaStream& stream);

  Options options_;
  DeviceBuffer device_, ids_;
  std::array<Slot, 3> slots_;  // two steps on their way, and the one being made
  int next_slot_ = 0;
};

}  // namespace lapidary
