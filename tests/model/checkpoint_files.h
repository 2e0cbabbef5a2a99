// Writes tiny checkpoints for the tests of model/: folders with safetensors, and GGUF files.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/dtype.h"
#include "model/checkpoint.h"
#include "model/model_spec.h"

namespace lapidary {

// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  // Writes a file and returns its path.
  std::string Write(const std::string& name, std::string_view bytes) const;

 private:
  std::string path_;
};

std::string ReadBytes(const std::string& path);

// A tensor to store. The content is made from the name, so that readers can be checked.
struct TensorToStore {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;

  int64_t bytes() const;
  std::string Content() const;
};

// What a model of this spec stores, with `prefix` before the names, all as `dtype`.
std::vector<TensorToStore> TensorsOf(const ModelSpec& spec, const std::string& prefix,
                                     DType dtype = DType::kF32);

std::string SafetensorsBytes(const std::vector<TensorToStore>& tensors);

// Collects metadata and tensors; Build lays them out as GGUF version 3.
class GgufBuilder {
 public:
  GgufBuilder& String(std::string_view key, std::string_view value);
  GgufBuilder& U32(std::string_view key, uint32_t value);
  GgufBuilder& F32(std::string_view key, float value);
  GgufBuilder& Bools(std::string_view key, const std::vector<bool>& values);
  GgufBuilder& U32s(std::string_view key, const std::vector<uint32_t>& values);
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values);
  // A value as it lies in the file, of any type number.
  GgufBuilder& Raw(std::string_view key, uint32_t type, std::string_view bytes);
  GgufBuilder& Tensor(const TensorToStore& tensor);
  GgufBuilder& Tensor(const TensorToStore& tensor, uint32_t type_number, std::string_view content);
  std::string Build(uint32_t version = 3) const;

 private:
  struct Stored {
    std::string directory_entry;  // without the offset
    std::string content;
  };
  std::string metadata_;
  uint64_t values_ = 0;
  std::vector<Stored> tensors_;
};

// GGUF files of a 4-layer model: gemma3, and gemma4 with K = V, experts (fused or split) and
// quantised matrices.
std::string TinyGemma3Gguf();
std::string TinyGemma4Gguf(bool split_experts);

// A config.json of a small Gemma 4 with everything but experts; hidden 24, 6 layers.
std::string TinyConfigJson();

// Every field of a spec that decides a computation, one per line: for comparing.
std::string Describe(const ModelSpec& spec);

// Reads the first and the last row of every tensor: a bad pointer or size faults. Returns their
// sum.
double TouchEverything(const Checkpoint& checkpoint);

}  // namespace lapidary
