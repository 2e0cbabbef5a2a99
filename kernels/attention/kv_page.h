// How the keys and values of one layer and one kv head lie in a page of 16 tokens.
//
//   keys          [columns / 2][16 tokens][2]   tokens in the SIMD lanes; in bf16 a pair of columns
//                                               shares a 32-bit lane, in fp32 and int8 the pair is
//                                               16 tokens of one column, then 16 of the next
//   values        [16 tokens][columns]          columns in the lanes; in bf16 columns c and c + 16
//                                               of each 32 share a lane: shift and mask give them
//   key scales    [16] fp32, int8 only          value = code * scale; one per token
//   value scales  [16] fp32, int8 only
//
// kSplit: all columns of k, and v in its own order. kFolded and kSingle keep v in another order,
// the columns that rotate first: a (0 ...), b (d / 2 ...), each padded to whole 16s, then the plain
// ones. kFolded adds the rotating columns of k as keys (a, then b, not padded); kSingle has no
// keys.
//
// Padding (columns to 2 for keys, to 32 for values; areas to cache lines) holds zeros. A page of a
// family is the heads of its owning layers one after the other.
#pragma once
#include <cstdint>

#include "common/base/dtype.h"

namespace lapidary {

struct KvLayout {
  KvType type = KvType::kBf16;
  int head_dim = 0;
  KvFormat format = KvFormat::kSplit;
  int rotated_pairs = 0;  // columns i and i + head_dim / 2 turn, i < rotated_pairs; not for kSplit

  int element_bytes() const { return type == KvType::kFp32 ? 4 : type == KvType::kBf16 ? 2 : 1; }
  int key_columns() const {
    return format == KvFormat::kSplit    ? (head_dim + 1) / 2 * 2
           : format == KvFormat::kFolded ? 2 * rotated_pairs
                                         : 0;
  }
  // Width of the a columns in a row of values, and of the b columns. 0 for kSplit.
  int padded_pairs() const {
    return format == KvFormat::kSplit ? 0 : (rotated_pairs + 15) / 16 * 16;
  }
  int value_columns() const {
    const int plain = format == KvFormat::kSplit ? head_dim : head_dim - 2 * rotated_pairs;
    return (2 * padded_pairs() + plain + 31) / 32 * 32;
  }
  // Place of column c of v in a row of values.
  int ValuePlace(int c) const {
    if (format == KvFormat::kSplit) return c;
    const int half = head_dim / 2, padding = padded_pairs() - rotated_pairs;
    if (c < rotated_pairs) return c;
    if (c < half) return c + rotated_pairs + 2 * padding;
    if (c < half + rotated_pairs) return c - half + padded_pairs();
    return c + 2 * padding;
  }
  int64_t key_bytes() const { return Lines(int64_t{kPageTokens} * key_columns()); }
  int64_t value_bytes() const { return Lines(int64_t{kPageTokens} * value_columns()); }
  int64_t scale_bytes() const {
    const int64_t each = kPageTokens * sizeof(float);
    return type != KvType::kInt8 ? 0 : key_columns() > 0 ? 2 * each : each;
  }
  int64_t head_bytes() const { return key_bytes() + value_bytes() + scale_bytes(); }

 private:
  int64_t Lines(int64_t elements) const { return (elements * element_bytes() + 63) / 64 * 64; }
};

// Stores one token's key (after its rotation; not read by kSingle) and value, [head_dim] each, at
// `slot` of its page. bf16 and int8 round to nearest even; an int8 row with an element that is not
// finite reads as NaN.
void WriteKv(const KvLayout& layout, uint8_t* head, int slot, const float* key, const float* value);

// Reads them back: for tests and debug. Columns of the key that the format does not keep become 0.
void ReadKv(const KvLayout& layout, const uint8_t* head, int slot, float* key, float* value);

}  // namespace lapidary
