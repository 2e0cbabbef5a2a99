#include "worker/gemma_forward.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {

absl::StatusOr<std::unique_ptr<GemmaForward>> GemmaForward::Create(const ModelWeights& weights,
                                                                   const RunnerOptions& options,
                                                                   Backend& backend) {
  std::unique_ptr<GemmaForward> forward(
      new GemmaForward(weights, backend, options.max_logits_rows));
  RETURN_IF_ERROR(forward->AllocateActivations(options));
  return forward;
}

absl::Status GemmaForward::AllocateActivations(const RunnerOptions& options) {
  const int64_t tokens = options.max_step_tokens;
  int64_t qkv = 0, q = 0;
  bool has_experts = false;
  for (const LayerWeights& layer : weights_.layers) {
    qkv = std::max(qkv, layer.qkv_width());
    q = std::max(q, layer.q_width());
    has_experts = has_experts || static_cast<bool>(layer.moe.router);
  }
  ASSIGN_OR_RETURN(x_, backend_.Allocate(tokens, weights_.hidden, ActivationRole::kStream));
  ASSIGN_OR_RETURN(qkv_, backend_.Allocate(tokens, qkv, ActivationRole::kQkv));
  ASSIGN_OR_RETURN(attended_, backend_.Allocate(tokens, q, ActivationRole::kAttended));
  ASSIGN_OR_RETURN(partial_, backend_.Allocate(tokens, weights_.hidden, ActivationRole::kSummand));
  if (has_experts) {
    ASSIGN_OR_RETURN(pair_,
                     backend_.Allocate(tokens, 2 * weights_.hidden, ActivationRole::kSummand));
  }
  if (weights_.ple.dim > 0) {
    ASSIGN_OR_RETURN(ple_, backend_.Allocate(tokens, weights_.ple.layers * weights_.ple.dim,
                                             ActivationRole::kPle));
  }
  ASSIGN_OR_RETURN(hidden_, backend_.Allocate(tokens, weights_.hidden, ActivationRole::kHidden));
  ASSIGN_OR_RETURN(logits_,
                   backend_.Allocate(logits_rows_, weights_.vocab.size(), ActivationRole::kLogits));
  return absl::OkStatus();
}

absl::Status GemmaForward::Enqueue(const HostBatch& host_batch) {
  ASSIGN_OR_RETURN(BatchRef batch, backend_.Upload(host_batch));
  return EnqueueStep(std::move(batch));
}

absl::Status GemmaForward::WarmUp() {
  while (true) {
    ASSIGN_OR_RETURN(BatchRef batch, backend_.NextWarmUpStep());
    if (batch == nullptr) return backend_.stream().Synchronize();
    RETURN_IF_ERROR(EnqueueStep(std::move(batch)));
  }
}

absl::Status GemmaForward::EnqueueStep(BatchRef batch) {
  wanted_ = batch->wanted;
  // A replayed step shows nothing of its middle.
  if (!probe_) {
    ASSIGN_OR_RETURN(const Backend::StepMode mode, backend_.BeginStep(batch));
    if (mode == Backend::StepMode::kReplayed) {
      SetView(0);
      return absl::OkStatus();
    }
  }
  EnqueueOperations(std::move(batch));
  return backend_.EndStep();
}

void GemmaForward::EnqueueOperations(BatchRef batch) {
  backend_.Embed(batch, weights_, x_);
  backend_.AllReduce(x_, batch->tokens);
  Show(-1, "embedding", x_, batch->tokens, x_.width);
  if (weights_.ple.dim > 0) {
    backend_.PleInputs(batch, weights_, x_, ple_);
    Show(-1, "ple_inputs", ple_, batch->tokens, ple_.width);
  }
  for (const LayerWeights& layer : weights_.layers) {
    QueriesAndKeys(batch, layer);
    if (layer.index == last_owner_ && wanted_ < batch->tokens) {
      backend_.KeepWantedRows(batch, x_);
      backend_.KeepWantedRows(batch, qkv_);
      if (weights_.ple.dim > 0) backend_.KeepWantedRows(batch, ple_);
      batch = backend_.KeepWanted(batch);
    }
    if (batch->tokens == 0) break;  // a chunk of a prompt in whose logits nobody is interested
    AttentionAndMlp(batch, layer);
  }

  backend_.FinalNorm(batch, weights_, x_, hidden_);
  Show(-1, "final_norm", hidden_, wanted_, hidden_.width);
  EnqueueLogits(0);
}

// Norms of a summed output come after the sum over ranks, so each product that ranks split is
// followed by a reduction. Dense MLP and experts are normed apart: one reduction of 2 M for both.
void GemmaForward::QueriesAndKeys(const BatchRef& batch, const LayerWeights& layer) {
  backend_.NormQkv(batch, layer, x_, qkv_);
  Show(layer.index, "qkv", qkv_, batch->tokens, layer.qkv_width());
  backend_.NormRopeWrite(batch, layer, qkv_);
  Show(layer.index, "q_rotated", qkv_, batch->tokens, layer.q_width());
}

void GemmaForward::AttentionAndMlp(const BatchRef& batch, const LayerWeights& layer) {
  const int64_t tokens = batch->tokens;
  const bool has_experts = static_cast<bool>(layer.moe.router), has_ple = weights_.ple.dim > 0;
  const float scalar_after_mlp = has_ple ? 1.0f : layer.scalar;

  backend_.Attend(batch, layer, qkv_, attended_);
  Show(layer.index, "attended", attended_, tokens, layer.q_width());
  backend_.OutputProduct(batch, layer, attended_, partial_);
  backend_.AllReduce(partial_, tokens);
  Show(layer.index, "attention_output", partial_, tokens, partial_.width);
  backend_.AddNormed(batch, layer, layer.post_attention_norm, partial_, 1.0f, x_);
  Show(layer.index, "after_attention", x_, tokens, x_.width);

  if (has_experts) {
    backend_.GatedMlp(batch, layer, x_, pair_);
    backend_.Router(batch, layer, x_);
    backend_.Experts(batch, layer, x_, pair_);
    backend_.AllReduce(pair_, tokens);
    Show(layer.index, "mlp_and_experts", pair_, tokens, pair_.width);
    backend_.CombineMoe(batch, layer, pair_, scalar_after_mlp, x_);
  } else {
    backend_.GatedMlp(batch, layer, x_, partial_);
    backend_.AllReduce(partial_, tokens);
    Show(layer.index, "mlp", partial_, tokens, partial_.width);
    backend_.AddNormed(batch, layer, layer.post_mlp_norm, partial_, scalar_after_mlp, x_);
  }
  if (has_ple) {
    Show(layer.index, "after_mlp", x_, tokens, x_.width);
    backend_.PleMix(batch, layer, weights_.ple, ple_, layer.scalar, x_);
  }
  Show(layer.index, "output", x_, tokens, x_.width);
}

void GemmaForward::EnqueueLogits(int64_t first_row) {
  SetView(first_row);
  backend_.Head(weights_, hidden_, first_row, view_.rows, logits_);
  Show(-1, "logits", logits_, view_.rows, logits_.width);
}

void GemmaForward::SetView(int64_t first_row) {
  const int64_t rows = std::clamp<int64_t>(wanted_ - first_row, 0, logits_rows_);
  view_ = {static_cast<float*>(logits_.data), rows, logits_.width, weights_.vocab};
}

void GemmaForward::Show(int layer, const char* name, Activation data, int64_t rows,
                        int64_t columns) {
  if (!probe_) return;
  std::string full = layer < 0 ? std::string(name) : absl::StrFormat("layers.%d.%s", layer, name);
  backend_.Inspect(data, rows, columns,
                   [probe = probe_, full = std::move(full), rows, columns](const float* values) {
                     probe(full, values, rows, columns);
                   });
}

}  // namespace lapidary
