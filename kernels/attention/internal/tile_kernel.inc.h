// The tile kernel: some query rows over all their keys. Included by attention_avx512.cc and
// attention_avx2.cc inside an unnamed namespace, after score.inc.h.

// acc += p * V for columns [32 c, 32 c + 32) of pages [begin, end) of a block. Tokens outside every
// row's range are not read: their slots may hold anything.
template <KvType kType, int kRows>
inline void AddValues(const TileTask& task, const uint8_t* const* keys, const int64_t* ahead, int c,
                      int begin, int end, const int* live_begin, const int* live_end,
                      TileScratch& scratch) {
  constexpr int kPairBytes = PairBytes(kType);
  const int chunks = task.value_columns / 32;
  const int64_t row_bytes = int64_t{kPairBytes} * chunks;
  // This chunk's part of the lines that ScoreValues left.
  const int64_t early = EarlyBytes(task);
  const int64_t fetch_step = (task.value_bytes - early) / (chunks * kPageTokens);
  F16 acc[kRows][2];
  float* chunk = scratch.acc + c * (32 * kRows);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    acc[r][0] = Load(chunk + r * 32);
    acc[r][1] = Load(chunk + r * 32 + 16);
  }
  for (int j = begin; j < end; ++j) {
    const uint8_t* values = keys[j] + task.key_bytes;
    const uint8_t* v = values + int64_t{kPairBytes} * c + live_begin[j] * row_bytes;
    const uint8_t* fetch = values + ahead[j] + early + c * kPageTokens * fetch_step;
    const float* p = scratch.p + j * kPageTokens;
    for (int t = live_begin[j]; t < live_end[j]; ++t, v += row_bytes) {
      F16 v0, v1;
      LoadPair<kType>(v, v0, v1);
      _mm_prefetch(reinterpret_cast<const char*>(fetch + t * fetch_step), _MM_HINT_T1);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const F16 weight = All(p[r * kBlockTokens + t]);
        acc[r][0] = Fma(weight, v0, acc[r][0]);
        acc[r][1] = Fma(weight, v1, acc[r][1]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    Store(chunk + r * 32, acc[r][0]);
    Store(chunk + r * 32 + 16, acc[r][1]);
  }
}

// out = acc * inverse, columns back in their own order. Chunks of 32 places lie `stride` apart.
inline void WriteOut(const TileTask& task, float* acc, int stride, float inverse, float* out) {
  for (int c = 0; c < task.value_columns / 32; ++c) {
    float* chunk = acc + c * stride;
    Store(chunk, Mul(Load(chunk), All(inverse)));
    Store(chunk + 16, Mul(Load(chunk + 16), All(inverse)));
  }
  // Places [place, place + count) become columns from `column` on.
  const auto copy = [acc, stride, out](int place, int column, int count) {
    for (int i = 0; i < count;) {
      const int p = place + i;
      int some = 32 - p % 32;
      if (some > count - i) some = count - i;
      __builtin_memcpy(out + column + i, acc + p / 32 * stride + p % 32, sizeof(float) * some);
      i += some;
    }
  };
  const int dim = task.head_dim;
  if (task.format == KvFormat::kSplit) {
    copy(0, 0, dim);
    return;
  }
  const int pairs = task.rotated_pairs, padded = task.padded_pairs, half = dim / 2;
  copy(0, 0, pairs);
  copy(padded, half, pairs);
  copy(2 * padded, pairs, half - pairs);
  copy(2 * padded + half - pairs, half + pairs, dim - half - pairs);
}

// What the factors exp(own maximum - common maximum) make of two parts of a row's keys.
struct FoldFactors {
  F16 state, part;
};

// state = state and part together; both hold keys. Returns what their sums are to be multiplied by.
inline FoldFactors FoldTotals(float& best, float& total, float part_best, float part_total) {
  const float most = best > part_best ? best : part_best;
  const FoldFactors f = {ExpNegative(All(best - most)), ExpNegative(All(part_best - most))};
  total = _mm256_cvtss_f32(Low(Fma(All(total), f.state, Mul(All(part_total), f.part))));
  best = most;
  return f;
}
inline void Fold32(float* state, const float* part, const FoldFactors& f) {
  Store(state, Fma(Load(state), f.state, Mul(Load(part), f.part)));
  Store(state + 16, Fma(Load(state + 16), f.state, Mul(Load(part + 16), f.part)));
}
inline void Copy32(float* to, const float* from) {
  Store(to, Load(from));
  Store(to + 16, Load(from + 16));
}

// scratch.acc, best and total of the task's rows [row, row + kRows) over keys [first, last), which
// lie in one segment. fetch_end: pages before it are worth fetching. total 0: no key.
template <KvType kType, int kRows>
inline void RunSegment(const TileTask& task, int row, int32_t first, int32_t last,
                       int32_t fetch_end, TileScratch& scratch, float* best, float* total) {
  const int value_columns = task.value_columns;
  for (int r = 0; r < kRows; ++r) {
    float* acc = scratch.acc + r * 32;  // [column / 32][row][32]
    for (int c = 0; c < value_columns / 32; ++c) {
      Store(acc + c * (32 * kRows), Zero());
      Store(acc + c * (32 * kRows) + 16, Zero());
    }
    best[r] = -1e30f;
    total[r] = 0.0f;
  }

  // Blocks of kBlockPages pages, at absolute positions: a row meets the same blocks whatever stands
  // beside it.
  const int32_t page_begin = first / kPageTokens;
  const int32_t page_end = (last + kPageTokens - 1) / kPageTokens;
  for (int32_t page = page_begin; page < page_end;) {
    int32_t block_end = (page / kBlockPages + 1) * kBlockPages;
    if (block_end > page_end) block_end = page_end;
    const int pages = block_end - page;
    const uint8_t* keys[kBlockPages] = {};
    int live_begin[kBlockPages], live_end[kBlockPages];  // tokens that some row reads
    for (int j = 0; j < pages; ++j) {
      keys[j] = task.pool + int64_t{task.pages[page + j]} * task.page_bytes;
      live_begin[j] = kPageTokens;
      live_end[j] = 0;
    }
    // The passes over a page fetch the page four further on, each a part, evenly: sixteen lines can
    // be on their way at a time, and a burst would have to wait for them.
    int64_t ahead[kBlockPages] = {};
    for (int j = 0; j < pages; ++j) {
      const int32_t fetched = page + kBlockPages + j;
      if (fetched < fetch_end) {
        ahead[j] = task.pool + int64_t{task.pages[fetched]} * task.page_bytes - keys[j];
      } else if (fetched - fetch_end < task.next_page_count) {
        const int32_t next = task.next_pages[fetched - fetch_end];
        ahead[j] = task.next_pool + int64_t{next} * task.page_bytes - keys[j];
      }
    }

    for (int j = 0; j < pages; ++j) {
      Scores<kType, kRows>(task, keys[j], page + j, ahead[j], scratch, scratch.p + j * kPageTokens);
    }

    // Online softmax, each row by itself. Masked keys weigh exactly 0.
    for (int r = 0; r < kRows; ++r) {
      float* p = scratch.p + r * kBlockTokens;
      F16 largest = All(-1e30f);
      int begin[kBlockPages], end[kBlockPages];
      bool any = false;
      for (int j = 0; j < pages; ++j) {
        const int32_t start = (page + j) * kPageTokens;
        begin[j] = task.first[row + r] - start;
        end[j] = task.last[row + r] - start;
        if (begin[j] < 0) begin[j] = 0;
        if (end[j] > kPageTokens) end[j] = kPageTokens;
        if (begin[j] >= end[j]) {  // the page is a neighbour's
          begin[j] = end[j] = 0;
          continue;
        }
        any = true;
        if (begin[j] < live_begin[j]) live_begin[j] = begin[j];
        if (end[j] > live_end[j]) live_end[j] = end[j];
        largest = Max(largest, Select(Load(p + j * kPageTokens), begin[j], end[j], -1e30f));
      }
      if (!any) {
        for (int j = 0; j < pages; ++j) Store(p + j * kPageTokens, Zero());
        continue;
      }
      const float block_best = MaxOf(largest);
      if (block_best > best[r]) {
        const F16 shrink = ExpNegative(All(best[r] - block_best));
        float* acc = scratch.acc + r * 32;
        for (int c = 0; c < value_columns / 32; ++c, acc += 32 * kRows) {
          Store(acc, Mul(Load(acc), shrink));
          Store(acc + 16, Mul(Load(acc + 16), shrink));
        }
        total[r] *= _mm256_cvtss_f32(Low(shrink));
        best[r] = block_best;
      }
      F16 sum = Zero();
      for (int j = 0; j < pages; ++j) {
        F16 weight = ExpNegative(Sub(Load(p + j * kPageTokens), All(best[r])));
        weight = Select(weight, begin[j], end[j], 0.0f);
        sum = Add(sum, weight);
        if constexpr (kType == KvType::kInt8) {  // from here on they multiply codes
          weight = Select(Mul(weight, Load(ValueScales(task, keys[j]))), begin[j], end[j], 0.0f);
        }
        Store(p + j * kPageTokens, weight);
      }
      total[r] += SumOf(sum);
    }

    // acc += p * V. Many rows: the accumulators of 32 columns stay in registers for the whole
    // block, whose rows lie far enough apart for L1 up to 256 columns. Else page after page, a
    // linear read. The order of each accumulator's steps is the same.
    if (kRows > 8 && value_columns <= 256) {
      for (int c = 0; c < value_columns / 32; ++c) {
        AddValues<kType, kRows>(task, keys, ahead, c, 0, pages, live_begin, live_end, scratch);
      }
    } else {
      for (int j = 0; j < pages; ++j) {
        for (int c = 0; c < value_columns / 32; ++c) {
          AddValues<kType, kRows>(task, keys, ahead, c, j, j + 1, live_begin, live_end, scratch);
        }
      }
    }
    page = block_end;
  }
}

// Rows [row, row + kRows) of the task. The keys of a row come in segments of kSegmentTokens at
// absolute positions, each with a softmax of its own, folded in ascending order: the bits are the
// same whether one tile goes through all of them or each is another thread's.
template <KvType kType, int kRows>
void Tile(const TileTask& task, int row, TileScratch& scratch) {
  const int chunks = task.value_columns / 32;
  int32_t first = task.first[row], last = task.last[row];
  for (int r = 1; r < kRows; ++r) {
    if (task.first[row + r] < first) first = task.first[row + r];
    if (task.last[row + r] > last) last = task.last[row + r];
  }
  const int32_t fetch_end = (last + kPageTokens - 1) / kPageTokens;
  ArrangeQueries<kRows>(task, row, scratch);
  float part_best[kRows], part_total[kRows];

  if (task.segment >= 0) {
    const int32_t begin = task.segment * kSegmentTokens, end = begin + kSegmentTokens;
    if (first < begin) first = begin;
    if (last > end) last = end;
    RunSegment<kType, kRows>(task, row, first, last, fetch_end, scratch, part_best, part_total);
    for (int r = 0; r < kRows; ++r) {
      float* partial = task.partial[row + r];
      for (int c = 0; c < chunks; ++c) {
        Copy32(partial + c * 32, scratch.acc + (c * kRows + r) * 32);
      }
      partial[chunks * 32] = part_best[r];
      partial[chunks * 32 + 1] = part_total[r];
    }
    return;
  }

  const int32_t segment_begin = first / kSegmentTokens;
  const int32_t segment_end = (last - 1) / kSegmentTokens + 1;
  float* state = segment_end - segment_begin == 1 ? scratch.acc : scratch.state;
  float best[kRows], total[kRows];
  for (int r = 0; r < kRows; ++r) {
    best[r] = -1e30f;
    total[r] = 0.0f;
  }
  for (int32_t segment = segment_begin; segment < segment_end; ++segment) {
    const int32_t begin = segment * kSegmentTokens, end = begin + kSegmentTokens;
    RunSegment<kType, kRows>(task, row, first > begin ? first : begin, last < end ? last : end,
                             fetch_end, scratch, part_best, part_total);
    for (int r = 0; r < kRows; ++r) {
      if (part_total[r] == 0.0f) continue;
      const bool is_first = total[r] == 0.0f;
      FoldFactors f = {};
      if (is_first) {
        best[r] = part_best[r];
        total[r] = part_total[r];
        if (state == scratch.acc) continue;
      } else {
        f = FoldTotals(best[r], total[r], part_best[r], part_total[r]);
      }
      for (int c = 0; c < chunks; ++c) {
        const int at = (c * kRows + r) * 32;
        if (is_first) {
          Copy32(state + at, scratch.acc + at);
        } else {
          Fold32(state + at, scratch.acc + at, f);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    WriteOut(task, state + r * 32, 32 * kRows, 1.0f / total[r], task.out[row + r]);
  }
}

// One row of which each segment was a task: partial results in ascending order, `stride` apart.
inline void FoldRow(const TileTask& task, float* partial, int segments, int64_t stride,
                    float* out) {
  const int columns = task.value_columns;
  for (; segments > 1 && partial[columns + 1] == 0.0f; --segments) partial += stride;
  float* state = partial;
  for (int s = 1; s < segments; ++s) {
    partial += stride;
    if (partial[columns + 1] == 0.0f) continue;
    const FoldFactors f =
        FoldTotals(state[columns], state[columns + 1], partial[columns], partial[columns + 1]);
    for (int c = 0; c < columns; c += 32) Fold32(state + c, partial + c, f);
  }
  WriteOut(task, state, 32, 1.0f / state[columns + 1], out);
}

template <KvType kType>
void RunRows(const TileTask& task, TileScratch& scratch) {
  int row = 0;
  while (row < task.rows) {
    const int left = task.rows - row;
#ifdef __AVX512F__
    if (left >= 12) {
      Tile<kType, 12>(task, row, scratch);
      row += 12;
      continue;
    }
    if (left >= 8) {
      Tile<kType, 8>(task, row, scratch);
      row += 8;
      continue;
    }
    if (left >= 4) {
      Tile<kType, 4>(task, row, scratch);
      row += 4;
      continue;
    }
#endif
    if (left >= 2) {
      Tile<kType, 2>(task, row, scratch);
      row += 2;
      continue;
    }
    Tile<kType, 1>(task, row, scratch);
    row += 1;
  }
}

inline void RunTask(const TileTask& task, TileScratch& scratch) {
  switch (task.type) {
    case KvType::kFp32:
      return RunRows<KvType::kFp32>(task, scratch);
    case KvType::kBf16:
      return RunRows<KvType::kBf16>(task, scratch);
    case KvType::kInt8:
      return RunRows<KvType::kInt8>(task, scratch);
  }
}
