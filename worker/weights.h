// One rank's slices of a checkpoint, on its device: which tensors make which matrix, by layer.
//
// Read by GemmaForward; filled by LoadWeights, which hands every matrix to the backend as parts of
// stored tensors. The backend alone knows how a matrix lies in its memory.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/dtype.h"
#include "model/checkpoint.h"
#include "model/model_spec.h"
#include "model/shard_plan.h"

namespace lapidary {

class Backend;

// Names of what a backend holds. Default: absent, or empty on this rank.
struct MatrixHandle {
  int32_t index = -1;
  explicit operator bool() const { return index >= 0; }
};
struct VectorHandle {
  int32_t index = -1;
  explicit operator bool() const { return index >= 0; }
};

// Rows and columns of one stored tensor, seen as a matrix [rows(), inner()].
struct MatrixPart {
  const StoredTensor* tensor = nullptr;
  Range rows;
  Range columns;  // the same width in all parts of a matrix
};

// Place of a matrix in a stack of `count` of one shape (a layer's experts): a backend may want them
// one behind the other. They are added in ascending order, two stacks at a time. count 0: none.
struct MatrixStack {
  int64_t index = 0, count = 0;
};

// A matrix to load: parts stacked along the output, each [rows, columns].
struct MatrixSource {
  std::string name;  // for messages
  std::vector<MatrixPart> parts;
  bool keep_fp32 = false;      // the router: fp32 whatever the compute type
  bool at_least_bf16 = false;  // the head and the small ones: never in 8 bit that the file has not
  bool gated = false;          // outputs [0, n / 2) are gates, [n / 2, n) their ups
  MatrixStack stack;

  int64_t outputs() const {
    int64_t n = 0;
    for (const MatrixPart& part : parts) n += part.rows.size();
    return n;
  }
  int64_t inputs() const { return parts.empty() ? 0 : parts[0].columns.size(); }
};

struct MoeWeights {
  MatrixHandle router;            // [E, M], whole on every rank
  VectorHandle router_scale;      // [M], times hidden^-1/2
  VectorHandle per_expert_scale;  // [E]
  VectorHandle dense_post_norm, expert_pre_norm, expert_post_norm;
  Range experts;                      // of this rank
  std::vector<MatrixHandle> gate_up;  // one per expert of this rank: gate rows, then up rows
  std::vector<MatrixHandle> down;
};

struct LayerWeights {
  int index = 0;
  LayerSpec spec;
  double attention_scale = 1.0;
  bool v_norm = true;
  float norm_eps = 1e-6f;

  int q_heads = 0;               // of this rank
  int kv_heads = 0;              // of this rank, 0 when the layer shares another's
  std::vector<int> group_begin;  // [kv heads read + 1]: kv head h serves q heads [h, h + 1) of this
  int first_kv_head = 0;         // of the heads read, in the owner's share of the rank

  VectorHandle input_norm, q_norm, k_norm, post_attention_norm, pre_mlp_norm, post_mlp_norm;
  MatrixHandle qkv;     // q rows, then k, then v (no v when k_eq_v; neither when shared)
  MatrixHandle output;  // [M, q_heads * D]
  MatrixHandle gate_up;
  MatrixHandle down;
  int64_t mlp_width = 0;  // of this rank
  MoeWeights moe;
  MatrixHandle ple_gate, ple_projection;  // whole on every rank
  VectorHandle ple_post_norm;
  float scalar = 1.0f;

  bool owns_kv() const { return spec.kv_owner == index; }
  int64_t q_width() const { return int64_t{q_heads} * spec.head_dim; }
  int64_t kv_width() const { return int64_t{kv_heads} * spec.head_dim; }
  // Columns of the qkv product.
  int64_t qkv_width() const {
    return q_width() + (owns_kv() ? (spec.k_eq_v ? 1 : 2) * kv_width() : 0);
  }
};

struct PleWeights {
  int dim = 0;                          // 0: the model has none
  int64_t layers = 0;                   // L: rows of the table are [L, dim]
  const StoredTensor* table = nullptr;  // stays mapped; a step reads one row per token
  MatrixHandle projection;              // [L * dim, M]
  VectorHandle norm;                    // [dim]
  float projection_scale = 1.0f;        // hidden^-1/2
  float table_scale = 1.0f;             // dim^1/2
};

struct ModelWeights {
  int64_t hidden = 0;
  float norm_eps = 1e-6f;
  float embedding_scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  Range vocab;           // rows of this rank
  MatrixHandle head;     // [vocab, M]: the embedding and the head are one matrix
  VectorHandle final_norm;
  PleWeights ple;
  MoeSpec moe;
  std::vector<LayerWeights> layers;
};

// Geometry alone: what LoadWeights returns, without handles. For sizing workspace and pages.
ModelWeights DescribeWeights(const ModelSpec& spec, const RankShard& shard);

// Loads all of a rank's weights into the backend. INVALID_ARGUMENT names a tensor that is absent or
// does not fit; progress is told packed bytes.
absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const RankShard& shard,
                                         Backend& backend,
                                         const std::function<void(int64_t, int64_t)>& progress);

// Bytes that LoadWeights would make resident for this rank when a matrix takes matrix_bytes(); the
// table of per-layer embeddings does not count. Nothing is read. For planning.
absl::StatusOr<int64_t> WeightsBytes(
    const Checkpoint& checkpoint, const RankShard& shard,
    const std::function<int64_t(const MatrixSource&)>& matrix_bytes);

}  // namespace lapidary
