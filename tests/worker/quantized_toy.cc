#include "tests/worker/quantized_toy.h"

#include <cmath>
#include <vector>

#include "tests/worker/quantized_blocks.h"

namespace lapidary {
namespace {

bool IsMatrix(const StoredTensor& tensor) {
  return tensor.shape.size() >= 2 && tensor.inner() % 32 == 0 &&
         tensor.name.find("router") == std::string::npos;
}

}  // namespace

ModelSpec WidenedToy(ModelSpec spec, int head_dim) {
  spec.hidden = 64;
  for (LayerSpec& layer : spec.layers) {
    layer.q_heads = 8;
    layer.mlp_width = 96;
    layer.head_dim = layer.kind == KvFamily::kGlobal ? 32 : head_dim;
    layer.rope.rotated_pairs = layer.head_dim / 4;
  }
  if (spec.ple_dim > 0) spec.ple_dim = 32;
  if (spec.moe.experts > 0) spec.moe.expert_width = 32;
  return spec;
}

std::unique_ptr<MemoryCheckpoint> QuantizedToy(const ModelSpec& spec) {
  auto checkpoint = FillToy(spec);
  constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ5_0, DType::kQ4_0};
  // A standard deviation of 1 / sqrt(inputs): codes are uniform over 2^bits.
  constexpr float kCodeSize[] = {73.9f, 9.2f, 4.6f};
  int next = 0;
  const std::vector<StoredTensor> tensors = checkpoint->tensors();
  for (const StoredTensor& tensor : tensors) {
    if (!IsMatrix(tensor)) continue;
    const int type = next++ % 3;
    const float size = 1 / std::sqrt(static_cast<float>(tensor.inner())) / kCodeSize[type];
    checkpoint->AddBlocks(tensor.name, kTypes[type], tensor.shape,
                          RandomBlocks(kTypes[type], tensor.rows(), tensor.inner(), size,
                                       static_cast<uint32_t>(next)));
  }
  return checkpoint;
}

}  // namespace lapidary
