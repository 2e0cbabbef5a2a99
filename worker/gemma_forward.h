// The forward pass of every Gemma text model, over the operations of a backend.
#pragma once
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/backend.h"
#include "worker/model_runner.h"
#include "worker/weights.h"

namespace lapidary {

// Enqueues steps. Owns the activations between the operations; used on the engine thread alone.
class GemmaForward {
 public:
  // Everything outlives this. Allocates for max_step_tokens and max_logits_rows.
  static absl::StatusOr<std::unique_ptr<GemmaForward>> Create(const ModelWeights& weights,
                                                              const RunnerOptions& options,
                                                              Backend& backend);

  absl::Status Enqueue(const HostBatch& batch);
  // Before the first batch, once there are KV pages: what the backend wants to have run.
  absl::Status WarmUp();
  void EnqueueLogits(int64_t first_row);
  LogitsView logits() const { return view_; }
  void set_probe(ModelRunner::Probe probe) { probe_ = std::move(probe); }

 private:
  GemmaForward(const ModelWeights& weights, Backend& backend, int64_t logits_rows)
      : weights_(weights), backend_(backend), logits_rows_(logits_rows) {
    for (const LayerWeights& layer : weights.layers) {
      if (layer.owns_kv()) last_owner_ = layer.index;
    }
  }

  absl::Status AllocateActivations(const RunnerOptions& options);
  absl::Status EnqueueStep(BatchRef batch);
  void EnqueueOperations(BatchRef batch);
  // The logits buffer as it will be: rows of the wanted ones from first_row on.
  void SetView(int64_t first_row);
  // The two halves of a layer. Between them, in the last layer that writes keys, the batch shrinks
  // to the tokens whose logits are wanted.
  void QueriesAndKeys(const BatchRef& batch, const LayerWeights& layer);
  void AttentionAndMlp(const BatchRef& batch, const LayerWeights& layer);
  // Shows an intermediate to the probe, if there is one. `layer` < 0: of the whole model.
  void Show(int layer, const char* name, Activation data, int64_t rows, int64_t columns);

  const ModelWeights& weights_;
  Backend& backend_;
  const int64_t logits_rows_;
  int last_owner_ = 0;  // the last layer that writes keys and values
  ModelRunner::Probe probe_;

  Activation x_;         // [T, M] the stream
  Activation ple_;       // [T, L * P]
  Activation attended_;  // [T, q heads * D]
  Activation qkv_;       // [T, (q + k + v heads) * D]
  Activation partial_;   // [T, M]: a rank's summand
  Activation pair_;      // [T, 2 M]: dense and experts, one reduction for both
  Activation hidden_;    // [T, M]: rows whose logits are wanted
  Activation logits_;    // [logits_rows, V / ranks]
  int64_t wanted_ = 0;   // of the last step
  LogitsView view_;
};

}  // namespace lapidary
