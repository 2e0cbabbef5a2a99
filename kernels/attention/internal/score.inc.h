// Scores of some query rows against one page, for every page format. Included by
// attention_avx512.cc and attention_avx2.cc inside an unnamed namespace, after vector16.inc.h.
//
// Keys with tokens in the lanes: a column's query is broadcast, each row has an accumulator for
// even and one for odd columns. Values with columns in the lanes (what folded and single pages
// keep): each row and token has one accumulator of 16 partial sums, folded at the end in a fixed
// tree. Both go through the columns in ascending order, so a row's bits do not depend on the tile's
// size.

constexpr int kBlockPages = 4;  // softmax and accumulators are brought up to date once in 64 keys
constexpr int kBlockTokens = kBlockPages * kPageTokens;

constexpr int PairBytes(KvType type) {
  return type == KvType::kFp32 ? 128 : type == KvType::kBf16 ? 64 : 32;
}

// A pair of key columns for 16 tokens, or a pair of 16 value columns of one token.
template <KvType kType>
inline void LoadPair(const uint8_t* p, F16& a, F16& b) {
  if constexpr (kType == KvType::kBf16) {
    LoadBf16(p, a, b);
  } else if constexpr (kType == KvType::kInt8) {
    a = LoadInt8(p);
    b = LoadInt8(p + 16);
  } else {
    a = Load(reinterpret_cast<const float*>(p));
    b = Load(reinterpret_cast<const float*>(p) + 16);
  }
}

// int8 pages: the factors of the 16 tokens.
inline const float* KeyScales(const TileTask& task, const uint8_t* head) {
  return reinterpret_cast<const float*>(head + task.key_bytes + task.value_bytes);
}
inline const float* ValueScales(const TileTask& task, const uint8_t* head) {
  return KeyScales(task, head) + (task.key_columns > 0 ? kPageTokens : 0);
}

// Rows interleaved, so that the inner loops address all rows with constant offsets from one
// pointer.
//   q       [key columns / 2][row][2]
//   plain   [column / 32][row][32]     times w_k: against the values' plain columns
//   turning [row][2 P]                 single: a and b columns, turned back for each page
template <int kRows>
inline void ArrangeQueries(const TileTask& task, int row, TileScratch& scratch) {
  const int dim = task.head_dim, half = dim / 2;
  const int pairs = task.rotated_pairs, padded = task.padded_pairs;
  const bool split = task.format == KvFormat::kSplit;
  for (int r = 0; r < kRows; ++r) {
    const float* from = task.q[row + r];
    float* q = scratch.q + r * 2;
    if (split) {
      for (int c = 0; c < half; ++c) {
        __builtin_memcpy(q + c * (2 * kRows), from + 2 * c, 2 * sizeof(float));
      }
      if (dim % 2 != 0) {
        q[half * (2 * kRows)] = from[dim - 1];
        q[half * (2 * kRows) + 1] = 0.0f;
      }
      continue;
    }
    if (task.format == KvFormat::kFolded) {
      for (int i = 0; i < 2 * pairs; ++i) {
        q[i / 2 * (2 * kRows) + i % 2] = from[i < pairs ? i : half + i - pairs];
      }
    } else {
      float* turning = scratch.turning + r * 2 * padded;
      for (int i = 0; i < padded; ++i) {
        turning[i] = i < pairs ? from[i] : 0.0f;
        turning[padded + i] = i < pairs ? from[half + i] : 0.0f;
      }
    }
    float* plain = scratch.plain + r * 32;
    const int columns = task.value_columns - 2 * padded;
    for (int i = 0; i < columns; ++i) {
      const int c = i < half - pairs ? pairs + i : 2 * pairs + i;
      plain[i / 32 * (32 * kRows) + i % 32] = c < dim ? from[c] * task.key_weight[c] : 0.0f;
    }
  }
  if (task.format != KvFormat::kSingle) return;
  for (int i = 0; i < padded; ++i) {
    scratch.weight[i] = i < pairs ? task.key_weight[i] : 0.0f;
    scratch.weight[padded + i] = i < pairs ? task.key_weight[half + i] : 0.0f;
  }
}

// q . k for keys with tokens in the lanes: one vector of 16 tokens for each row.
template <KvType kType, int kRows>
inline void ScoreKeys(const uint8_t* k, int key_columns, int64_t ahead, const float* q,
                      F16* scores) {
  // Even and odd columns in two accumulators, for the latency of FMA at few rows.
  F16 even[kRows], odd[kRows];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = Zero();
  for (int c = 0; c < key_columns / 2; ++c, k += PairBytes(kType), q += 2 * kRows) {
    F16 k0, k1;
    LoadPair<kType>(k, k0, k1);
    _mm_prefetch(reinterpret_cast<const char*>(k + ahead), _MM_HINT_T1);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      even[r] = Fma(All(q[r * 2]), k0, even[r]);
      odd[r] = Fma(All(q[r * 2 + 1]), k1, odd[r]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) scores[r] = Add(even[r], odd[r]);
}

// Single pages: the query's rotating columns turned by minus the page's first position,
// [column / 16][row][16].
template <int kRows>
inline void TurnQueriesBack(const TileTask& task, int32_t page, TileScratch& scratch) {
  const int padded = task.padded_pairs;
  const float* cosine = task.page_begin + int64_t{page} * 2 * padded;
  const float* sine = cosine + padded;
  for (int i = 0; i < padded; i += 16) {
    const F16 c = Load(cosine + i), s = Load(sine + i);
    for (int r = 0; r < kRows; ++r) {
      const float* q = scratch.turning + r * 2 * padded;
      const F16 a = Load(q + i), b = Load(q + padded + i);
      Store(scratch.turned_q + (i * kRows + r * 16), Fma(b, s, Mul(a, c)));
      Store(scratch.turned_q + ((padded + i) * kRows + r * 16), NegFma(a, s, Mul(b, c)));
    }
  }
}

// Single pages: the rotating columns of one token's key, turned by its place in the page.
template <KvType kType>
inline void TurnKey(const TileTask& task, const uint8_t* row, int place, const float* weight,
                    float* key) {
  const int padded = task.padded_pairs;
  for (int c = 0; c < 2 * padded; c += 32) {
    F16 x, y;
    LoadPair<kType>(row + c / 32 * PairBytes(kType), x, y);
    Store(key + c, Mul(x, Load(weight + c)));
    Store(key + c + 16, Mul(y, Load(weight + c + 16)));
  }
  const float* cosine = task.in_page + place * 2 * padded;
  const float* sine = cosine + padded;
  for (int i = 0; i < padded; i += 16) {
    const F16 a = Load(key + i), b = Load(key + padded + i);
    const F16 c = Load(cosine + i), s = Load(sine + i);
    Store(key + i, NegFma(b, s, Mul(a, c)));
    Store(key + padded + i, Fma(a, s, Mul(b, c)));
  }
}

// Of the values of the page ahead, what ScoreValues fetches: a line for two tokens and 32 columns.
inline int64_t EarlyBytes(const TileTask& task) {
  if (task.format == KvFormat::kSplit) return 0;
  return int64_t{task.value_columns / 32 - 2 * task.padded_pairs / 32} * (kPageTokens / 2) * 64;
}

// q . k over the rows of values of a page: the plain columns, and for single pages before them the
// rotating ones.
template <KvType kType, int kRows>
inline void ScoreValues(const TileTask& task, const uint8_t* values, int64_t ahead,
                        TileScratch& scratch, F16* scores) {
#ifdef __AVX512F__
  constexpr int kTokens = kRows >= 8 ? 2 : kRows >= 2 ? 4 : 8;  // at a time, for the registers
#else
  constexpr int kTokens = kRows >= 2 ? 2 : 4;
#endif
  constexpr int kPairBytes = PairBytes(kType);
  const int64_t row_bytes = int64_t{kPairBytes} * (task.value_columns / 32);
  const int turning = 2 * task.padded_pairs;
  const bool single = task.format == KvFormat::kSingle;
  const uint8_t* fetch = values + ahead;
  for (int t = 0; t < kPageTokens; t += kTokens) {
    F16 acc[kRows][kTokens];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kTokens; ++i) acc[r][i] = Zero();
    }
    const uint8_t* row = values + t * row_bytes;
    if (single) {
      for (int i = 0; i < kTokens; ++i) {
        TurnKey<kType>(task, row + i * row_bytes, t + i, scratch.weight,
                       scratch.turned_keys + i * turning);
      }
      const float* q = scratch.turned_q;
      for (int c = 0; c < turning; c += 16, q += 16 * kRows) {
        F16 k[kTokens];
#pragma GCC unroll 8
        for (int i = 0; i < kTokens; ++i) k[i] = Load(scratch.turned_keys + i * turning + c);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          const F16 x = Load(q + r * 16);
#pragma GCC unroll 8
          for (int i = 0; i < kTokens; ++i) acc[r][i] = Fma(x, k[i], acc[r][i]);
        }
      }
    }
    const float* q = scratch.plain;
    for (int c = turning; c < task.value_columns; c += 32, q += 32 * kRows) {
      const uint8_t* k = row + c / 32 * kPairBytes;
#pragma GCC unroll 4
      for (int i = 0; i < kTokens / 2; ++i, fetch += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(fetch), _MM_HINT_T1);
      }
      F16 k0[kTokens], k1[kTokens];
#pragma GCC unroll 8
      for (int i = 0; i < kTokens; ++i) LoadPair<kType>(k + i * row_bytes, k0[i], k1[i]);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const F16 x = Load(q + r * 32), y = Load(q + r * 32 + 16);
#pragma GCC unroll 8
        for (int i = 0; i < kTokens; ++i) {
          acc[r][i] = Fma(y, k1[i], Fma(x, k0[i], acc[r][i]));
        }
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kTokens; i += 2) {
        Store(scratch.sums + r * (8 * 16) + (t + i) * 8, Fold8(acc[r][i], acc[r][i + 1]));
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const float* s = scratch.sums + r * (8 * 16);
    const F16 a = Fold2(Fold4(Load(s), Load(s + 16)), Fold4(Load(s + 32), Load(s + 48)));
    const F16 b = Fold2(Fold4(Load(s + 64), Load(s + 80)), Fold4(Load(s + 96), Load(s + 112)));
    scores[r] = Fold1(a, b);
  }
}

// The scores of one page, into p[r * kBlockTokens].
template <KvType kType, int kRows>
inline void Scores(const TileTask& task, const uint8_t* head, int32_t page, int64_t ahead,
                   TileScratch& scratch, float* p) {
  F16 of_keys[kRows], of_values[kRows];
  if (task.key_columns > 0) {
    ScoreKeys<kType, kRows>(head, task.key_columns, ahead, scratch.q, of_keys);
    if constexpr (kType == KvType::kInt8) {
      const F16 scale = Load(KeyScales(task, head));
      for (int r = 0; r < kRows; ++r) of_keys[r] = Mul(of_keys[r], scale);
    }
    if (task.format == KvFormat::kSplit) {
      for (int r = 0; r < kRows; ++r) Store(p + r * kBlockTokens, of_keys[r]);
      return;
    }
  } else {
    for (int r = 0; r < kRows; ++r) of_keys[r] = Zero();
  }
  if (task.format == KvFormat::kSingle) TurnQueriesBack<kRows>(task, page, scratch);
  ScoreValues<kType, kRows>(task, head + task.key_bytes, ahead, scratch, of_values);
  for (int r = 0; r < kRows; ++r) {
    F16 score = of_values[r];
    if constexpr (kType == KvType::kInt8) score = Mul(score, Load(ValueScales(task, head)));
    Store(p + r * kBlockTokens, Add(of_keys[r], score));
  }
}
