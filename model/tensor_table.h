// The tensors that a spec calls for, by canonical name, and what they count.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/model_spec.h"

namespace lapidary {

// What a tensor is for; inspect adds up by part.
enum class TensorPart {
  kEmbedding,
  kAttention,
  kMlp,
  kExperts,
  kRouter,
  kPleTable,
  kPleModelProjection,
  kPleLayer,
  kNorm,
  kLayerScalar,
};
const char* Name(TensorPart part);

struct ExpectedTensor {
  std::string name;  // canonical
  std::vector<int64_t> shape;
  TensorPart part;

  int64_t elements() const;
};

// Every tensor a forward pass reads, in the order of the graph. Dead tensors (below) are not among
// them. Experts are listed fused, as "layers.N.experts.gate_up_proj" (checkpoint.h).
std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec);

// k_proj, v_proj and k_norm of a layer that shares another's KV: original releases store them,
// later exports do not, nothing reads them.
bool IsDeadTensor(const ModelSpec& spec, std::string_view canonical_name);

// Elements of all expected tensors; of the dead ones, were they stored (in the release of E2B: 18.9
// million); and of those that one token multiplies with (no PLE table, only its experts).
int64_t LiveParameters(const ModelSpec& spec);
int64_t DeadParameters(const ModelSpec& spec);
int64_t ActiveParameters(const ModelSpec& spec);

}  // namespace lapidary
