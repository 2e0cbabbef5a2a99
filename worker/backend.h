// What a device must be able to do for a step: about fifteen fused operations, enqueued on its
// stream in order. GemmaForward is written over this alone; the CPU (cpu_backend) and CUDA (cuda/)
// implement it.
//
// Arguments are the device's: activations, weight handles, a batch descriptor. Nothing is read back
// on the host in the middle of a step. Rules of an implementation:
//   - norms, softmax, router and residual are fp32 inside; docs/numerics.md says what is rounded
//   where;
//   - a row's result depends on that row (and its sequence's pages) alone, bit for bit;
//   - the inner layout of a KV page is the implementation's.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model_runner.h"
#include "worker/stream.h"
#include "worker/weights.h"

namespace lapidary {

// What an activation is for: a backend may hold each kind in another type, or padded.
enum class ActivationRole : uint8_t {
  kStream,    // the residual stream: fp32
  kQkv,       // the qkv product
  kAttended,  // input of the output product
  kSummand,   // a rank's summand, reduced over ranks
  kPle,       // per-layer embeddings of the step's tokens
  kHidden,    // input of the head
  kLogits,    // fp32
};

// Rows of numbers on the device: [max rows, width]. Everything else is the backend's.
struct Activation {
  void* data = nullptr;
  int64_t width = 0;
};

// The batch of a step on the device. Kept alive by the work that reads it.
struct DeviceBatch {
  virtual ~DeviceBatch() = default;
  int64_t tokens = 0;
  int64_t wanted = 0;  // tokens whose logits are wanted
};
using BatchRef = std::shared_ptr<const DeviceBatch>;

class Backend {
 public:
  virtual ~Backend() = default;

  // -- Loading. Synchronous.
  // Bytes the matrix will take. INVALID_ARGUMENT when the source cannot be held.
  virtual absl::StatusOr<int64_t> MatrixBytes(const MatrixSource& source) const = 0;
  // Reads, converts and places a matrix. Thread-safe against nothing; peak memory is the result and
  // a few pages of the source. RESOURCE_EXHAUSTED when the device is full.
  virtual absl::StatusOr<MatrixHandle> AddMatrix(const MatrixSource& source) = 0;
  virtual absl::StatusOr<VectorHandle> AddVector(const std::vector<float>& values) = 0;
  // The table of per-layer embeddings, [rows, layers * dim]. A backend may leave it where it is
  // mapped; RESOURCE_EXHAUSTED when it must be copied and does not fit.
  virtual absl::Status AddPleTable(const StoredTensor& table) = 0;
  virtual int64_t weights_bytes() const = 0;

  // -- Memory.
  virtual absl::StatusOr<Activation> Allocate(int64_t rows, int64_t width, ActivationRole role) = 0;
  virtual int64_t workspace_bytes() const = 0;
  virtual int64_t page_bytes(KvFamily family) const = 0;
  virtual absl::Status AllocateKv(const std::array<int32_t, kKvFamilies>& pages) = 0;

  // -- A step. Copies the batch; INVALID_ARGUMENT when it contradicts itself or exceeds the limits.
  virtual absl::StatusOr<BatchRef> Upload(const HostBatch& batch) = 0;
  // Where the ids of HostBatch::sampled_from are. They are read on the stream, before Embed.
  virtual SampledIds sampled_ids() { return {}; }

  // Around the operations of a step. A backend that records steps (CUDA graphs) may have one like
  // this: kReplayed means that all of its operations, the first slice of logits included, have been
  // enqueued, and nothing else is to be. EndStep: what went wrong since BeginStep.
  enum class StepMode { kEnqueue, kReplayed };
  virtual absl::StatusOr<StepMode> BeginStep(const BatchRef&) { return StepMode::kEnqueue; }
  virtual absl::Status EndStep() { return absl::OkStatus(); }
  // The next step of padding to be run before the first real one: what a backend wants to have
  // warm, or recorded. Null: no more. The same on all ranks.
  virtual absl::StatusOr<BatchRef> NextWarmUpStep() { return BatchRef(); }

  // The batch of the wanted tokens alone, and their rows of an activation moved to the front: after
  // the last layer that writes keys nobody needs the others. Exact, since rows are independent.
  virtual BatchRef KeepWanted(const BatchRef& batch) = 0;
  virtual void KeepWantedRows(const BatchRef& batch, Activation data) = 0;

  // x = embedding[id] * scale; rows of other ranks' vocabulary are 0.
  virtual void Embed(const BatchRef& batch, const ModelWeights& model, Activation x) = 0;
  // ple [T, L * P] = (norm(Wmp x * M^-1/2) + table[id] * P^1/2) * 2^-1/2
  virtual void PleInputs(const BatchRef& batch, const ModelWeights& model, Activation x,
                         Activation ple) = 0;
  // qkv = Wqkv norm(x)
  virtual void NormQkv(const BatchRef& batch, const LayerWeights& layer, Activation x,
                       Activation qkv) = 0;
  // q: head norm, rotation, attention scale, in place. k: head norm, rotation; v: norm of the raw
  // v (or of the raw k); both into the pages of the layer. Shared layers: q alone.
  virtual void NormRopeWrite(const BatchRef& batch, const LayerWeights& layer, Activation qkv) = 0;
  // attended [T, q_heads * D] from q and the owner's pages.
  virtual void Attend(const BatchRef& batch, const LayerWeights& layer, Activation qkv,
                      Activation attended) = 0;
  // partial[:, 0:M] = Wo attended: this rank's summand.
  virtual void OutputProduct(const BatchRef& batch, const LayerWeights& layer, Activation attended,
                             Activation partial) = 0;
  // x = (x + norm(partial)) * scalar
  virtual void AddNormed(const BatchRef& batch, const LayerWeights& layer, VectorHandle norm,
                         Activation partial, float scalar, Activation x) = 0;
  // partial[:, 0:M] = Wdown (gelu(Wgate h) * (Wup h)), h = norm(x): this rank's summand.
  virtual void GatedMlp(const BatchRef& batch, const LayerWeights& layer, Activation x,
                        Activation partial) = 0;
  // The top_k experts of every token with their weights, kept in the backend until Experts.
  virtual void Router(const BatchRef& batch, const LayerWeights& layer, Activation x) = 0;
  // partial[:, M:2M] = sum over this rank's chosen experts, in ascending expert id.
  virtual void Experts(const BatchRef& batch, const LayerWeights& layer, Activation x,
                       Activation partial) = 0;
  // x = (x + norm(norm1(partial[:, 0:M]) + norm2(partial[:, M:2M]))) * scalar
  virtual void CombineMoe(const BatchRef& batch, const LayerWeights& layer, Activation partial,
                          float scalar, Activation x) = 0;
  // x = (x + norm(Wpp (gelu(Wig x) * ple[:, layer]))) * scalar
  virtual void PleMix(const BatchRef& batch, const LayerWeights& layer, const PleWeights& weights,
                      Activation ple, float scalar, Activation x) = 0;
  // hidden [wanted, M] = norm(x[wanted tokens]): nobody else's row reaches the head.
  virtual void FinalNorm(const BatchRef& batch, const ModelWeights& model, Activation x,
                         Activation hidden) = 0;
  // logits [rows, vocab] = softcap(E hidden[first : first + rows])
  virtual void Head(const ModelWeights& model, Activation hidden, int64_t first, int64_t rows,
                    Activation logits) = 0;

  // rows x width numbers become the sum over ranks. A no-op for one rank.
  virtual void AllReduce(Activation data, int64_t rows) = 0;
  // Calls see(numbers) on the stream with columns [0, columns) of the rows, packed, fp32, in host
  // memory.
  virtual void Inspect(Activation data, int64_t rows, int64_t columns,
                       std::function<void(const float*)> see) = 0;

  virtual Stream& stream() = 0;
};

}  // namespace lapidary
