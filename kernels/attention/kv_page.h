// How the keys and values of one layer and one kv head lie in a page of 16 tokens ("split" format).
//
//   keys    [d / 2][16 tokens][2]   tokens in the SIMD lanes; a pair of columns per 32-bit lane
//   values  [16 tokens][d]          columns in the lanes; in bf16 columns c and c + 16 of each 32
//                                   share a 32-bit lane, so that shift and mask give them in order
// fp32 keys are [d][16 tokens]. Keys are padded to even d, values to a multiple of 32; the padding
// holds zeros. A page of a family is the heads of its owning layers one after the other.
#pragma once
#include <cstdint>

#include "common/base/dtype.h"

namespace lapidary {

enum class KvType : uint8_t { kFp32, kBf16 };

struct KvLayout {
  KvType type = KvType::kBf16;
  int head_dim = 0;

  int element_bytes() const { return type == KvType::kFp32 ? 4 : 2; }
  int key_columns() const { return (head_dim + 1) / 2 * 2; }
  int value_columns() const { return (head_dim + 31) / 32 * 32; }
  // Rounded to whole cache lines: key_columns is even, so they are whole already.
  int64_t key_bytes() const { return int64_t{kPageTokens} * key_columns() * element_bytes(); }
  int64_t value_bytes() const { return int64_t{kPageTokens} * value_columns() * element_bytes(); }
  int64_t head_bytes() const { return key_bytes() + value_bytes(); }
};

// Stores one token's key and value, [head_dim] each, at `slot` of its page. bf16 rounds to nearest.
void WriteKv(const KvLayout& layout, uint8_t* head, int slot, const float* key, const float* value);

// Reads them back: for tests and debug.
void ReadKv(const KvLayout& layout, const uint8_t* head, int slot, float* key, float* value);

}  // namespace lapidary
