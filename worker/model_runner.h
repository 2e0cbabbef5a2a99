// One rank's model: its slices of the weights, its KV pools, and the forward pass over a backend.
// Owned by the executor and used on the engine thread alone; work runs on stream().
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/dtype.h"
#include "common/base/ids.h"
#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "worker/comm/communicator.h"
#include "worker/stream.h"

namespace lapidary {

class Sampler;

struct RunnerOptions {
  ComputeType compute = ComputeType::kBf16;
  std::string arith =
      "auto";  // auto, or a kernels/gemm Arithmetic name: the group's resolved choice
  // Pages of global K = V layers: auto, split, folded or single; and elements of all pages: auto
  // (fp32 for fp32 compute, else bf16) or int8. Fixed for the life of the pools. Empty is auto.
  std::string kv_format = "auto";
  std::string kv_type = "auto";
  int threads = 1;
  std::vector<int> cpus;      // pinning, one per thread; empty: none
  int max_step_tokens = 512;  // sizes the workspace
  int max_running = 64;
  int max_logits_rows = 576;  // rows of logits in one step; more are computed in slices
  int64_t max_context = 8192;
};

// The batch of one step, host side. T tokens of B sequences, packed; sequence b owns tokens
// [seq_begin[b], seq_begin[b+1]).
struct HostBatch {
  std::vector<TokenId> token_ids;    // [T]
  std::vector<int32_t> positions;    // [T] absolute
  std::vector<int32_t> seq_begin;    // [B + 1]
  std::vector<int32_t> context_len;  // [B] keys after this step: start + len
  // [B] page tables per family: entry i covers positions [16 i, 16 i + 16). Entries behind the
  // window may be stale and are not read.
  std::array<std::vector<const std::vector<PageId>*>, kKvFamilies> page_tables;
  std::vector<int32_t> logits_index;  // [L] tokens whose logits are wanted, ascending
  // [T], or empty when all ids are known. >= 0: the id is that element of
  // ModelRunner::sampled_ids() as the stream finds it (an earlier step samples it), and token_ids
  // holds nothing.
  std::vector<int32_t> sampled_from;
};

// Device memory for what steps sample, so that the next step can begin with it while the host knows
// nothing yet. Steps take turns with its two halves: a half is written again by the step after the
// next, behind whoever reads it.
struct SampledIds {
  TokenId* data = nullptr;  // [2 * rows]
  int32_t rows = 0;         // of a step: at most one per token
};

// Logits of the last Forward: [L, stride] fp32, this rank's vocabulary shard, soft-capped. Device
// memory, valid until the next Forward or EnqueueLogits is enqueued.
struct LogitsView {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t stride = 0;
  Range vocab;  // global ids of columns [0, vocab.size())
};

class ModelRunner {
 public:
  // A runner on the CPU. Reads only this rank's slices; progress(done_bytes, total_bytes) is called
  // now and then.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Load(
      const Checkpoint& checkpoint, const RankShard& shard, const RunnerOptions& options,
      Communicator& comm, const std::function<void(int64_t, int64_t)>& progress);
  virtual ~ModelRunner() = default;

  virtual int64_t weights_bytes() const = 0;
  virtual int64_t workspace_bytes() const = 0;
  // For the KV pools when nobody says how much.
  virtual int64_t default_kv_bytes() const { return int64_t{1} << 30; }
  // Bytes of one page (16 tokens of all owning layers of the family) on this rank.
  virtual int64_t page_bytes(KvFamily family) const = 0;
  virtual absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>& pages) = 0;

  // Enqueues the forward pass. The batch is copied; the page tables are read before it returns.
  // All ranks call it with the same batch. logits() is valid once the stream has reached it.
  virtual absl::Status Forward(const HostBatch& batch) = 0;
  virtual LogitsView logits() const = 0;
  // With more than max_logits_rows wanted, Forward leaves the first max_logits_rows in logits() and
  // this enqueues the next slice, from wanted row `first_row` on; logits() then holds it.
  virtual void EnqueueLogits(int64_t first_row) = 0;
  virtual Stream& stream() = 0;
  // Written by the sampler, read by Forward, on the stream alone. Without data: every id of a batch
  // must be known.
  virtual SampledIds sampled_ids() { return {}; }
  // A sampler over this runner's logits, on its stream. The runner and comm outlive it. Before
  // default_kv_bytes(): it needs memory too.
  virtual absl::StatusOr<std::unique_ptr<Sampler>> CreateSampler(Communicator& comm,
                                                                 int64_t vocab) = 0;
  virtual const std::string& resolved_arith() const = 0;

  // For `debug`: called on the stream with each named intermediate, [rows, width] fp32. Empty: off.
  using Probe =
      std::function<void(std::string_view name, const float* data, int64_t rows, int64_t width)>;
  virtual void set_probe(Probe probe) = 0;

  // Ends what the device waits for, such as another rank's part in a sum. From any thread.
  virtual void Abort(const std::string&) {}
};

}  // namespace lapidary
