// Models with weights made of a formula, in memory: the forward pass against published numbers
// without any file. Weights: u(tensor, element) from a 32-bit hash, as the golden vectors' source
// defines them.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/model_spec.h"

namespace lapidary {

// A Checkpoint whose tensors are fp32 vectors of ours.
class MemoryCheckpoint final : public Checkpoint {
 public:
  explicit MemoryCheckpoint(ModelSpec spec) : spec_(std::move(spec)) {}
  void Add(const std::string& name, std::vector<int64_t> shape, std::vector<float> values);
  // Blocks of a quantised type instead of floats.
  void AddBlocks(const std::string& name, DType dtype, std::vector<int64_t> shape,
                 std::vector<uint8_t> blocks);

  const ModelSpec& spec() const override { return spec_; }
  const GenerationDefaults& generation_defaults() const override { return defaults_; }
  const std::string& path() const override { return path_; }
  const StoredTensor* Find(std::string_view name) const override;
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }
  const std::vector<std::string>& unused_tensors() const override { return unused_; }
  bool quantized() const override { return quantized_; }

 private:
  ModelSpec spec_;
  GenerationDefaults defaults_;
  std::string path_ = "memory";
  std::vector<std::string> unused_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::vector<uint8_t>> storage_;
  std::map<std::string, size_t, std::less<>> index_;
  bool quantized_ = false;
};

// The golden toys: A (PLE, KV sharing, double-wide MLP), B (experts, K = V), G3 (Gemma 3).
ModelSpec ToyA();
ModelSpec ToyB();
ModelSpec ToyG3();

// All tensors of a spec in the goldens' order, filled by the goldens' formula.
std::unique_ptr<MemoryCheckpoint> FillToy(const ModelSpec& spec);

}  // namespace lapidary
