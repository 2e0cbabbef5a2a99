// How the keys and values of one layer and one kv head lie in a GPU's page of 16 tokens: one tile
// that a block brings in with a single linear copy.
//
//   tile    [16 tokens][row_columns()]   columns [0, value_columns()): v in its own order; behind
//                                        them the key columns
//   scales  [16] of keys, [16] of values, fp32, e4m3 only: number = code * scale
//           (kFolded: the same number twice, so that one scale stands before a score's whole sum)
//
//   kSplit   key column c is k[c]
//   kFolded  v alone gives the keys that do not turn (k = RoPE(w_k * v)); the key columns are those
//            of k that do: pairs() first columns (0 ...), padded to 16, then pairs() second ones
//            (head_dim / 2 ...), padded to 16
//
// The 16-byte chunks of a row are stored swizzled: chunk c of token row r at c ^ (r % 8), so that a
// linear copy of the tile can be read by ldmatrix without bank conflicts. That asks for rows of a
// multiple of 128 bytes: v and key areas are padded to that (zeros).
//
// A score is a product of score_columns() numbers: every key column, and in kFolded also the
// columns of v that do not turn, with w_k in the query. The query is packed to match (PackedQuery):
// blocks of 16 columns in the order of ScoreBlock(); columns that take no part hold zeros.
//
// Plain host and device code: decided here, tested here, so that kernels only load and multiply.
#pragma once
#include <cstdint>

#include "common/base/dtype.h"
#include "kernels/host_device.h"

namespace lapidary {

enum class GpuKvType : uint8_t { kBf16, kE4m3 };

struct GpuKvLayout {
  GpuKvType type = GpuKvType::kBf16;
  KvFormat format = KvFormat::kSplit;  // kSplit or kFolded
  int head_dim = 0;                    // even
  int rotated_pairs = 0;               // kFolded: columns i and i + head_dim / 2 turn, i < pairs

  LAPIDARY_HOST_DEVICE constexpr int element_bytes() const {
    return type == GpuKvType::kBf16 ? 2 : 1;
  }
  LAPIDARY_HOST_DEVICE constexpr int pad() const { return 128 / element_bytes(); }  // elements
  LAPIDARY_HOST_DEVICE constexpr int value_columns() const {
    return (head_dim + pad() - 1) / pad() * pad();
  }
  LAPIDARY_HOST_DEVICE constexpr int padded_pairs() const { return (rotated_pairs + 15) / 16 * 16; }
  LAPIDARY_HOST_DEVICE constexpr int key_columns() const {
    const int used = format == KvFormat::kSplit ? head_dim : 2 * padded_pairs();
    return (used + pad() - 1) / pad() * pad();
  }
  LAPIDARY_HOST_DEVICE constexpr int row_columns() const { return value_columns() + key_columns(); }
  LAPIDARY_HOST_DEVICE constexpr int row_bytes() const { return row_columns() * element_bytes(); }
  LAPIDARY_HOST_DEVICE constexpr int tile_bytes() const { return kPageTokens * row_bytes(); }
  LAPIDARY_HOST_DEVICE constexpr int scale_bytes() const {
    return type == GpuKvType::kBf16 ? 0 : 2 * kPageTokens * 4;
  }
  // Of one kv head: a multiple of 128.
  LAPIDARY_HOST_DEVICE constexpr int head_bytes() const { return tile_bytes() + scale_bytes(); }

  // Byte of the 16-byte chunk `chunk` of a token's row inside the tile.
  LAPIDARY_HOST_DEVICE constexpr int ChunkOffset(int token, int chunk) const {
    return token * row_bytes() + (chunk ^ (token & 7)) * 16;
  }

  // Blocks of 16 columns that a score runs over.
  LAPIDARY_HOST_DEVICE constexpr int key_blocks() const {
    return format == KvFormat::kSplit ? (head_dim + 15) / 16 : 2 * padded_pairs() / 16;
  }
  // kFolded: blocks of v with a column that does not turn: all but those that turn entirely, which
  // are [0, FirstTurnedEnd()) and [SecondTurnedBegin(), + SecondTurned()).
  LAPIDARY_HOST_DEVICE constexpr int FirstTurnedEnd() const { return rotated_pairs / 16; }
  LAPIDARY_HOST_DEVICE constexpr int SecondTurnedBegin() const { return (head_dim / 2 + 15) / 16; }
  LAPIDARY_HOST_DEVICE constexpr int SecondTurned() const {
    const int n = (head_dim / 2 + rotated_pairs) / 16 - SecondTurnedBegin();
    return n > 0 ? n : 0;
  }
  LAPIDARY_HOST_DEVICE constexpr int PlainBlocksBefore(int block) const {
    const int first = block < FirstTurnedEnd() ? block : FirstTurnedEnd();
    int second = block - SecondTurnedBegin();
    second = second < 0 ? 0 : second < SecondTurned() ? second : SecondTurned();
    return block - first - second;
  }
  LAPIDARY_HOST_DEVICE constexpr int value_blocks() const {
    return format == KvFormat::kSplit ? 0 : PlainBlocksBefore((head_dim + 15) / 16);
  }
  LAPIDARY_HOST_DEVICE constexpr int score_blocks() const { return value_blocks() + key_blocks(); }
  LAPIDARY_HOST_DEVICE constexpr int score_columns() const { return 16 * score_blocks(); }
  // First column, in the row, of the i-th block of a score: plain value blocks, then key blocks.
  LAPIDARY_HOST_DEVICE constexpr int ScoreBlock(int i) const {
    const int values = value_blocks();
    if (i >= values) return value_columns() + 16 * (i - values);
    const int block = i + FirstTurnedEnd();
    return 16 * (block < SecondTurnedBegin() ? block : block + SecondTurned());
  }

  // Whether column c of k is one that the key area of a folded page holds.
  LAPIDARY_HOST_DEVICE constexpr bool Turns(int c) const {
    const int half = head_dim / 2;
    return c < half ? c < rotated_pairs : c < half + rotated_pairs;
  }
  // Column of a row where column c of k is kept; -1: v gives it.
  LAPIDARY_HOST_DEVICE constexpr int KeyColumn(int c) const {
    if (format == KvFormat::kSplit) return value_columns() + c;
    if (!Turns(c)) return -1;
    const int half = head_dim / 2;
    return value_columns() + (c < half ? c : padded_pairs() + c - half);
  }
  // Its inverse: the column of k at `column` of the key area; -1: padding.
  LAPIDARY_HOST_DEVICE constexpr int KeySource(int column) const {
    if (format == KvFormat::kSplit) return column < head_dim ? column : -1;
    if (column < padded_pairs()) return column < rotated_pairs ? column : -1;
    const int second = column - padded_pairs();
    return second < rotated_pairs ? head_dim / 2 + second : -1;
  }
  // Where column c of a rotated query goes in the packed query, or -1 - place when it is to be
  // multiplied by w_k[c] *before* it is put there (it meets v).
  LAPIDARY_HOST_DEVICE constexpr int QueryPlace(int c) const {
    if (format == KvFormat::kSplit) return c;
    if (Turns(c)) return 16 * value_blocks() + KeyColumn(c) - value_columns();
    return -1 - (16 * PlainBlocksBefore(c / 16) + c % 16);
  }
  // Its inverse: the column of the query at `place`; -1: a zero stands there.
  LAPIDARY_HOST_DEVICE constexpr int QuerySource(int place) const {
    const int values = 16 * value_blocks();
    if (place >= values) return KeySource(place - values);
    const int c = ScoreBlock(place / 16) + place % 16;
    return c < head_dim && !Turns(c) ? c : -1;
  }
  // Whether the packed query has such zeros.
  LAPIDARY_HOST_DEVICE constexpr bool QueryHasGaps() const { return score_columns() != head_dim; }

  LAPIDARY_HOST_DEVICE constexpr bool operator==(const GpuKvLayout& o) const {
    return type == o.type && format == o.format && head_dim == o.head_dim &&
           rotated_pairs == o.rotated_pairs;
  }
};

}  // namespace lapidary
