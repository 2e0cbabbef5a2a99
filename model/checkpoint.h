// A checkpoint on disk: a Hugging Face directory, one GGUF file, or a config.json alone.
//
// Files are memory-mapped and every offset, size, count and alignment is checked before use. Tensor
// names are canonical: Hugging Face's without the prefix, e.g. "layers.3.self_attn.q_proj.weight",
// "embed_tokens.weight", whatever the file calls them.
//
// Experts come in one of two forms, per layer, as the file stores them:
//   fused  "layers.N.experts.gate_up_proj" [E, 2 I, M], in each expert the I gate rows first
//   split  "layers.N.experts.gate_proj" [E, I, M] and "layers.N.experts.up_proj" [E, I, M]
// and always "layers.N.experts.down_proj" [E, M, I]. Find() tells which: split ones exist only in
// GGUF files. Gate and up of one expert are rows of the same length either way.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/dtype.h"
#include "model/model_spec.h"

namespace lapidary {

// One stored tensor. `data` points into the mapping, with whatever alignment the file has (read it
// through Dequantize, DecodeBlocks or memcpy), and lives as long as the Checkpoint.
struct StoredTensor {
  std::string name;  // canonical
  std::string file;  // base name, for messages
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first; the last is contiguous
  const uint8_t* data = nullptr;
  int64_t bytes = 0;

  int64_t inner() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const {
    int64_t n = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
    return n;
  }
};

// Sampling defaults a checkpoint suggests (generation_config.json). Absent: the neutral value.
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<bool> do_sample;
  std::vector<TokenId> eos_ids;
  std::vector<TokenId> suppress_tokens;
};

struct CheckpointOptions {
  bool require_tensors = true;  // false: a config.json alone is enough (inspect, planning)
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // NOT_FOUND for an absent path, INVALID_ARGUMENT for anything malformed, with the file and the
  // field. Tensors that are missing or misshapen are all named in one table (name, expected,
  // found).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path,
                                                          const CheckpointOptions& options);
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path) {
    return Open(path, CheckpointOptions{});
  }

  virtual const ModelSpec& spec() const = 0;
  virtual const GenerationDefaults& generation_defaults() const = 0;
  virtual const std::string& path() const = 0;
  // Null when the file does not have it (dead KV-shared tensors, v_proj of K=V layers).
  virtual const StoredTensor* Find(std::string_view canonical_name) const = 0;
  virtual const std::vector<StoredTensor>& tensors() const = 0;
  // Recognised but not used yet: dead KV-shared tensors, vision and audio towers. For inspect.
  virtual const std::vector<std::string>& unused_tensors() const = 0;
  virtual int64_t unused_bytes() const { return 0; }
  // True when any matrix is stored in a block format.
  virtual bool quantized() const = 0;
};

// Elements [begin, end) of a contiguous row-major run starting at `row`'s first byte; begin and end
// are multiples of the dtype's block (or `end` is the row's end). Exact: fp32 holds every value
// that F16, BF16 and Q8_0, Q4_0, Q5_0 blocks can express; the K formats as the ggml reference
// computes.
void Dequantize(DType dtype, const uint8_t* row, int64_t begin, int64_t end, float* out);

// A quantised row as unsigned codes with a scale (and a min) per block:
//   value = scale * (code - zero) - min
// block 32 for all but Q6_K (16). Q8_0: zero 128; Q4_0: 8; Q5_0: 16; Q6_K: 128 (codes widened to
// 8 bits); Q4_K, Q5_K: zero 0 with mins. begin and end are multiples of 32; codes [end - begin],
// scales and mins [(end - begin) / block].
void DecodeBlocks(DType dtype, const uint8_t* row, int64_t begin, int64_t end, uint8_t* codes,
                  float* scales, float* mins);

}  // namespace lapidary
