// The tile kernel over a vector of 16 floats: one AVX-512 register or two AVX2 registers. Included
// by attention_avx512.cc and attention_avx2.cc inside an unnamed namespace, after the intrinsics'
// header and tile.h. Both do the same operations in the same order, so their results are the same
// bits.

#ifdef __AVX512F__
struct F16 {
  __m512 v;
};
inline F16 Zero() { return {_mm512_setzero_ps()}; }
inline F16 All(float x) { return {_mm512_set1_ps(x)}; }
inline F16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void Store(float* p, F16 x) { _mm512_storeu_ps(p, x.v); }
inline F16 Fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 NegFma(F16 a, F16 b, F16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F16 Mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 Add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 Sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 Max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 Round(F16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
inline F16 PowerOfTwo(F16 n) {  // n integral, -126 to 127
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
inline __m256 Low(F16 a) { return _mm512_castps512_ps256(a.v); }
inline __m256 High(F16 a) { return _mm512_extractf32x8_ps(a.v, 1); }
// Lanes [begin, end) of x, `other` elsewhere.
inline F16 Select(F16 x, int begin, int end, float other) {
  const __mmask16 mask = static_cast<__mmask16>(((1u << end) - 1u) & ~((1u << begin) - 1u));
  return {_mm512_mask_blend_ps(mask, _mm512_set1_ps(other), x.v)};
}
inline void LoadBf16(const uint8_t* p, F16& even, F16& odd) {
  const __m512i x = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536)));
}
#else
struct F16 {
  __m256 lo, hi;
};
inline F16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 All(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void Store(float* p, F16 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline F16 Fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16 NegFma(F16 a, F16 b, F16 c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16 Mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 Add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 Sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 Max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 Round(F16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}
inline __m256 PowerOfTwo8(__m256 n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F16 PowerOfTwo(F16 n) { return {PowerOfTwo8(n.lo), PowerOfTwo8(n.hi)}; }
inline __m256 Low(F16 a) { return a.lo; }
inline __m256 High(F16 a) { return a.hi; }
inline F16 Select(F16 x, int begin, int end, float other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i eight = _mm256_set1_epi32(8);
  const __m256i b = _mm256_set1_epi32(begin - 1), e = _mm256_set1_epi32(end);
  const __m256i high = _mm256_add_epi32(lane, eight);
  const __m256i mask_lo =
      _mm256_and_si256(_mm256_cmpgt_epi32(lane, b), _mm256_cmpgt_epi32(e, lane));
  const __m256i mask_hi =
      _mm256_and_si256(_mm256_cmpgt_epi32(high, b), _mm256_cmpgt_epi32(e, high));
  const __m256 o = _mm256_set1_ps(other);
  return {_mm256_blendv_ps(o, x.lo, _mm256_castsi256_ps(mask_lo)),
          _mm256_blendv_ps(o, x.hi, _mm256_castsi256_ps(mask_hi))};
}
inline void LoadBf16(const uint8_t* p, F16& even, F16& odd) {
  const __m256i mask = _mm256_set1_epi32(-65536);
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + 1);
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(a, mask)),
         _mm256_castsi256_ps(_mm256_and_si256(b, mask))};
}
#endif

inline float MaxOf(F16 a) {
  const __m256 m = _mm256_max_ps(Low(a), High(a));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline float SumOf(F16 a) {
  const __m256 m = _mm256_add_ps(Low(a), High(a));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// exp(x) for x <= 0 (below -87: a number under 2e-38), relative error below 2^-22.
inline F16 ExpNegative(F16 x) {
  x = Max(x, All(-87.0f));
  const F16 n = Round(Mul(x, All(1.44269504f)));
  F16 r = NegFma(n, All(0.693359375f), x);
  r = NegFma(n, All(-2.12194440e-4f), r);
  F16 p = All(1.9875691500e-4f);
  p = Fma(p, r, All(1.3981999507e-3f));
  p = Fma(p, r, All(8.3334519073e-3f));
  p = Fma(p, r, All(4.1665795894e-2f));
  p = Fma(p, r, All(1.6666665459e-1f));
  p = Fma(p, r, All(5.0000001201e-1f));
  p = Fma(p, Mul(r, r), Add(r, All(1.0f)));
  return Mul(p, PowerOfTwo(n));
}

constexpr int kBlockPages = 4;  // softmax and accumulators are brought up to date once in 64 keys
constexpr int kBlockTokens = kBlockPages * kPageTokens;

// A pair of key columns for 16 tokens, or a pair of 16 value columns of one token.
template <KvType kType>
inline void LoadPair(const uint8_t* p, F16& a, F16& b) {
  if constexpr (kType == KvType::kBf16) {
    LoadBf16(p, a, b);
  } else {
    a = Load(reinterpret_cast<const float*>(p));
    b = Load(reinterpret_cast<const float*>(p) + 16);
  }
}

// acc += p * V for columns [32 c, 32 c + 32) of pages [begin, end) of a block. Tokens outside every
// row's range are not read: their slots may hold anything.
template <KvType kType, int kRows>
inline void AddValues(const uint8_t* const* keys, const int64_t* ahead, int64_t key_bytes,
                      int value_columns, int c, int begin, int end, const int* live_begin,
                      const int* live_end, TileScratch& scratch) {
  constexpr int kPairBytes = kType == KvType::kBf16 ? 64 : 128;
  const int64_t row_bytes = int64_t{kPairBytes} * (value_columns / 32);
  F16 acc[kRows][2];
  float* chunk = scratch.acc + c * (32 * kRows);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    acc[r][0] = Load(chunk + r * 32);
    acc[r][1] = Load(chunk + r * 32 + 16);
  }
  for (int j = begin; j < end; ++j) {
    const uint8_t* v = keys[j] + key_bytes + int64_t{kPairBytes} * c + live_begin[j] * row_bytes;
    const float* p = scratch.p + j * kPageTokens;
    for (int t = live_begin[j]; t < live_end[j]; ++t, v += row_bytes) {
      F16 v0, v1;
      LoadPair<kType>(v, v0, v1);
      _mm_prefetch(reinterpret_cast<const char*>(v + ahead[j]), _MM_HINT_T1);
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

// Rows [row, row + kRows) of the task.
template <KvType kType, int kRows>
void Tile(const TileTask& task, int row, TileScratch& scratch) {
  constexpr int kPairBytes = kType == KvType::kBf16 ? 64 : 128;
  const int dim = task.head_dim;
  const int key_columns = task.key_columns;
  const int value_columns = task.value_columns;
  const int64_t key_bytes = task.key_bytes;

  float best[kRows], total[kRows];
  int32_t first = task.first[row], last = task.last[row];
  for (int r = 0; r < kRows; ++r) {
    // Rows interleaved, [column / 2][row][2] and [column / 32][row][32]: the inner loops address
    // all rows with constant offsets from one pointer.
    float* q = scratch.q + r * 2;
    for (int c = 0; c < dim / 2; ++c) {
      __builtin_memcpy(q + c * (2 * kRows), task.q[row + r] + 2 * c, 2 * sizeof(float));
    }
    if (dim % 2 != 0) {
      q[dim / 2 * (2 * kRows)] = task.q[row + r][dim - 1];
      q[dim / 2 * (2 * kRows) + 1] = 0.0f;
    }
    float* acc = scratch.acc + r * 32;
    for (int c = 0; c < value_columns / 32; ++c) {
      Store(acc + c * (32 * kRows), Zero());
      Store(acc + c * (32 * kRows) + 16, Zero());
    }
    best[r] = -1e30f;
    total[r] = 0.0f;
    if (task.first[row + r] < first) first = task.first[row + r];
    if (task.last[row + r] > last) last = task.last[row + r];
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
    // Both passes over a page fetch the same lines of the page four further on.
    int64_t ahead[kBlockPages] = {};
    for (int j = 0; j < pages && page + kBlockPages + j < page_end; ++j) {
      ahead[j] =
          task.pool + int64_t{task.pages[page + kBlockPages + j]} * task.page_bytes - keys[j];
    }

    for (int j = 0; j < pages; ++j) {
      // Scores: even and odd columns in two accumulators, for the latency of FMA at few rows.
      F16 even[kRows], odd[kRows];
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) even[r] = odd[r] = Zero();
      const uint8_t* k = keys[j];
      for (int c = 0; c < key_columns / 2; ++c, k += kPairBytes) {
        F16 k0, k1;
        LoadPair<kType>(k, k0, k1);
        _mm_prefetch(reinterpret_cast<const char*>(k + ahead[j]), _MM_HINT_T1);
        const float* q = scratch.q + c * (2 * kRows);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          even[r] = Fma(All(q[r * 2]), k0, even[r]);
          odd[r] = Fma(All(q[r * 2 + 1]), k1, odd[r]);
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        Store(scratch.p + r * kBlockTokens + j * kPageTokens, Add(even[r], odd[r]));
      }
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
        const F16 weight = Select(ExpNegative(Sub(Load(p + j * kPageTokens), All(best[r]))),
                                  begin[j], end[j], 0.0f);
        sum = Add(sum, weight);
        Store(p + j * kPageTokens, weight);
      }
      total[r] += SumOf(sum);
    }

    // acc += p * V. Many rows: the accumulators of 32 columns stay in registers for the whole
    // block, whose rows lie far enough apart for L1 up to 256 columns. Else page after page, a
    // linear read. The order of each accumulator's steps is the same.
    if (kRows > 8 && value_columns <= 256) {
      for (int c = 0; c < value_columns / 32; ++c) {
        AddValues<kType, kRows>(keys, ahead, key_bytes, value_columns, c, 0, pages, live_begin,
                                live_end, scratch);
      }
    } else {
      for (int j = 0; j < pages; ++j) {
        for (int c = 0; c < value_columns / 32; ++c) {
          AddValues<kType, kRows>(keys, ahead, key_bytes, value_columns, c, j, j + 1, live_begin,
                                  live_end, scratch);
        }
      }
    }
    page = block_end;
  }

  for (int r = 0; r < kRows; ++r) {
    const float* acc = scratch.acc + r * 32;
    const float inverse = 1.0f / total[r];
    float* out = task.out[row + r];
    int c = 0;
    for (; c + 32 <= dim; c += 32, acc += 32 * kRows) {
      Store(out + c, Mul(Load(acc), All(inverse)));
      Store(out + c + 16, Mul(Load(acc + 16), All(inverse)));
    }
    for (int i = 0; c < dim; ++c, ++i) out[c] = acc[i] * inverse;
  }
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
  if (task.type == KvType::kBf16) {
    RunRows<KvType::kBf16>(task, scratch);
  } else {
    RunRows<KvType::kFp32>(task, scratch);
  }
}
