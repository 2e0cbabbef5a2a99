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
    float* q = scratch.q + r * key_columns;
    for (int c = 0; c < dim; ++c) q[c] = task.q[row + r][c];
    for (int c = dim; c < key_columns; ++c) q[c] = 0.0f;
    float* acc = scratch.acc + r * value_columns;
    for (int c = 0; c < value_columns; c += 16) Store(acc + c, Zero());
    best[r] = -1e30f;
    total[r] = 0.0f;
    if (task.first[row + r] < first) first = task.first[row + r];
    if (task.last[row + r] > last) last = task.last[row + r];
  }

  const int32_t page_end = (last + kPageTokens - 1) / kPageTokens;
  for (int32_t page = first / kPageTokens; page < page_end; ++page) {
    const uint8_t* keys = task.pool + int64_t{task.pages[page]} * task.page_bytes;
    const uint8_t* next =
        page + 1 < page_end ? task.pool + int64_t{task.pages[page + 1]} * task.page_bytes : keys;

    // Scores: even and odd columns in two accumulators, for the latency of FMA at few rows.
    F16 even[kRows], odd[kRows];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) even[r] = odd[r] = Zero();
    for (int c = 0; c < key_columns / 2; ++c) {
      F16 k0, k1;
      LoadPair<kType>(keys + int64_t{c} * kPairBytes, k0, k1);
      _mm_prefetch(reinterpret_cast<const char*>(next + int64_t{c} * kPairBytes), _MM_HINT_T1);
      const float* q = scratch.q + 2 * c;
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        even[r] = Fma(All(q[r * key_columns]), k0, even[r]);
        odd[r] = Fma(All(q[r * key_columns + 1]), k1, odd[r]);
      }
    }

    // Online softmax, each row by itself.
    int live_begin = kPageTokens, live_end = 0;
    for (int r = 0; r < kRows; ++r) {
      const int32_t start = page * kPageTokens;
      int begin = task.first[row + r] - start, end = task.last[row + r] - start;
      if (begin < 0) begin = 0;
      if (end > kPageTokens) end = kPageTokens;
      float* p = scratch.p + r * kPageTokens;
      if (begin >= end) {  // the page is a neighbour's
        Store(p, Zero());
        continue;
      }
      if (begin < live_begin) live_begin = begin;
      if (end > live_end) live_end = end;
      const F16 score = Select(Add(even[r], odd[r]), begin, end, -1e30f);
      const float page_best = MaxOf(score);
      if (page_best > best[r]) {
        const F16 shrink = ExpNegative(All(best[r] - page_best));
        float* acc = scratch.acc + r * value_columns;
        for (int c = 0; c < value_columns; c += 16) Store(acc + c, Mul(Load(acc + c), shrink));
        total[r] *= _mm256_cvtss_f32(Low(shrink));
        best[r] = page_best;
      }
      const F16 weight = Select(ExpNegative(Sub(score, All(best[r]))), begin, end, 0.0f);
      total[r] += SumOf(weight);
      Store(p, weight);
    }

    // acc += p * V, 32 columns at a time. Tokens outside every row's range are not read: their
    // slots may hold anything.
    const uint8_t* values = keys + key_bytes;
    for (int c = 0; c < value_columns / 32; ++c) {
      F16 acc[kRows][2];
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        acc[r][0] = Load(scratch.acc + r * value_columns + c * 32);
        acc[r][1] = Load(scratch.acc + r * value_columns + c * 32 + 16);
      }
      const int64_t line = int64_t{kPairBytes} * c;
      const int64_t row_bytes = int64_t{kPairBytes} * (value_columns / 32);
      for (int t = live_begin; t < live_end; ++t) {
        F16 v0, v1;
        LoadPair<kType>(values + t * row_bytes + line, v0, v1);
        _mm_prefetch(reinterpret_cast<const char*>(next + key_bytes + t * row_bytes + line),
                     _MM_HINT_T1);
        const float* p = scratch.p + t;
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          const F16 weight = All(p[r * kPageTokens]);
          acc[r][0] = Fma(weight, v0, acc[r][0]);
          acc[r][1] = Fma(weight, v1, acc[r][1]);
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        Store(scratch.acc + r * value_columns + c * 32, acc[r][0]);
        Store(scratch.acc + r * value_columns + c * 32 + 16, acc[r][1]);
      }
    }
  }

  for (int r = 0; r < kRows; ++r) {
    const float* acc = scratch.acc + r * value_columns;
    const float inverse = 1.0f / total[r];
    for (int c = 0; c < dim; ++c) task.out[row + r][c] = acc[c] * inverse;
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
