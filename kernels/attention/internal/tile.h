// What the driver hands to a compiled tile kernel: some query rows of one sequence and one kv head.
#pragma once
#include <cstdint>

#include "kernels/attention/kv_page.h"

namespace lapidary::attention_internal {

inline constexpr int kMaxRows = 12;
inline constexpr int kSegmentTokens = 1024;  // a multiple of the block that softmax goes by
inline constexpr int kMaxColumns = 1024;     // head_dim
inline constexpr int kMaxValueColumns = kMaxColumns + 64;  // with the padding of the rotating ones

// Plain numbers: an inline member function would be compiled with AVX-512 in one of the two kernels
// and shared with the other.
struct TileTask {
  KvType type = KvType::kBf16;
  int head_dim = 0;
  KvFormat format = KvFormat::kSplit;
  int rotated_pairs = 0, padded_pairs = 0;
  int key_columns = 0, value_columns = 0;
  int64_t key_bytes = 0, value_bytes = 0;
  const float* key_weight = nullptr;  // [head_dim]; folded, single
  const float* in_page = nullptr;     // PageRotation's tables; single
  const float* page_begin = nullptr;
  const uint8_t* pool = nullptr;  // plus the head's offset inside a page
  int64_t page_bytes = 0;
  const int32_t* pages = nullptr;
  // What the thread reads after this task, fetched while it ends: null, or the first pages and
  // where the head lies in them.
  const int32_t* next_pages = nullptr;
  int next_page_count = 0;
  const uint8_t* next_pool = nullptr;
  int rows = 0;              // 1 to kMaxRows
  const float* q[kMaxRows];  // [head_dim]
  float* out[kMaxRows];      // [head_dim]; may be q
  int32_t first[kMaxRows];   // keys [first, last) of each row, not empty
  int32_t last[kMaxRows];
  // >= 0: this segment of the keys alone, into partial: [value_columns] sums, the maximum, the
  // total weight (0: no key of the row is in it). out is then not written.
  int32_t segment = -1;
  float* partial[kMaxRows];
};

// Per thread. In use at head_dim 256, split pages: 26 KB, which with a page still fit L1.
struct alignas(64) TileScratch {
  float q[kMaxRows * kMaxColumns];
  float acc[kMaxRows * kMaxValueColumns];
  float state[kMaxRows * kMaxValueColumns];  // of the segments before
  float p[kMaxRows * 64];                    // scores, then weights, of a block of pages
  // Folded and single pages; what is what: score.inc.h.
  float plain[kMaxRows * kMaxValueColumns];
  float sums[kMaxRows * 8 * 16];
  float turning[kMaxRows * kMaxValueColumns];
  float turned_q[kMaxRows * kMaxValueColumns];
  float turned_keys[8 * kMaxValueColumns];
  float weight[kMaxValueColumns];
};

void RunTileAvx2(const TileTask& task, TileScratch& scratch);
void RunTileAvx512(const TileTask& task, TileScratch& scratch);
// Folds the partial results of one row; overwrites the first.
void FoldRowAvx2(const TileTask& task, float* partial, int segments, int64_t stride, float* out);
void FoldRowAvx512(const TileTask& task, float* partial, int segments, int64_t stride, float* out);

}  // namespace lapidary::attention_internal
