// How elements are stored in a checkpoint, and what arithmetic a group computes in.
#pragma once
#include <cstdint>

namespace lapidary {

// Storage of a checkpoint tensor. The quantised ones are GGUF's block formats.
enum class DType : uint8_t { kF32, kF16, kBf16, kQ8_0, kQ4_0, kQ5_0, kQ4K, kQ5K, kQ6K };

struct DTypeInfo {
  const char* name;
  int block_elements;  // elements per block along the inner dimension
  int block_bytes;
};

inline const DTypeInfo& Info(DType dtype) {
  static constexpr DTypeInfo kInfo[] = {
      {"F32", 1, 4},      {"F16", 1, 2},      {"BF16", 1, 2},
      {"Q8_0", 32, 34},   {"Q4_0", 32, 18},   {"Q5_0", 32, 22},
      {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210},
  };
  return kInfo[static_cast<int>(dtype)];
}

inline bool IsQuantized(DType dtype) {
  return dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBf16;
}

// Arithmetic of the matrix products; everything between them is fp32 (docs/numerics.md).
//   kFp32  weights widened to fp32; agrees with Hugging Face in fp32
//   kBf16  weights and the products' inputs rounded to bf16
//   kInt8  quantised weights as they are, inputs int8 in blocks of 32 (quantised files, CPU)
//   kFp8   weights e4m3 with a scale per output, inputs e4m3 with a scale per row (GPU)
enum class ComputeType : uint8_t { kFp32, kBf16, kInt8, kFp8 };

inline const char* Name(ComputeType compute) {
  static constexpr const char* kNames[] = {"fp32", "bf16", "int8", "fp8"};
  return kNames[static_cast<int>(compute)];
}

// The two kinds of KV storage, each with its own page pool.
enum class KvFamily : uint8_t { kSliding = 0, kGlobal = 1 };
inline constexpr int kKvFamilies = 2;

// Elements of the KV pages. int8: one scale per token and kv head, for keys and for values.
enum class KvType : uint8_t { kFp32, kBf16, kInt8 };

// What a page keeps of layers whose keys are k = RoPE(w_k * v) (docs/kv-cache.md). Other layers are
// always kSplit.
//   kSplit   k and v
//   kFolded  v, and the columns of k that rotate; w_k goes into the query for the others
//   kSingle  v alone; what rotates is turned when it is read
enum class KvFormat : uint8_t { kSplit, kFolded, kSingle };

// Tokens per KV page, both families.
inline constexpr int kPageTokens = 16;

}  // namespace lapidary
