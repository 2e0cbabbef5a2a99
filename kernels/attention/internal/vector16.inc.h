// A vector of 16 floats: one AVX-512 register or two AVX2 registers. Included by
// attention_avx512.cc and attention_avx2.cc inside an unnamed namespace, after the intrinsics'
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
inline F16 LoadInt8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// The sums of 16 vectors' lanes, as one vector, in four steps; each adds lane i to lane i + 8, 4,
// 2, 1 of the same vector, as SumOf does.
inline F16 Fold8(F16 a, F16 b) {  // 8 sums of a, then 8 of b
  return {
      _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee))};
}
inline F16 Fold4(F16 a, F16 b) {
  return {
      _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x88), _mm512_shuffle_f32x4(a.v, b.v, 0xdd))};
}
inline F16 Fold2(F16 a, F16 b) {
  return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x44), _mm512_shuffle_ps(a.v, b.v, 0xee))};
}
inline F16 Fold1(F16 a, F16 b) {
  const __m512 sum =
      _mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x88), _mm512_shuffle_ps(a.v, b.v, 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_ps(order, sum)};
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
inline __m256 LoadInt8Half(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F16 LoadInt8(const uint8_t* p) { return {LoadInt8Half(p), LoadInt8Half(p + 8)}; }

inline F16 Fold8(F16 a, F16 b) { return {_mm256_add_ps(a.lo, a.hi), _mm256_add_ps(b.lo, b.hi)}; }
inline __m256 Fold4Half(F16 a) {
  return _mm256_add_ps(_mm256_permute2f128_ps(a.lo, a.hi, 0x20),
                       _mm256_permute2f128_ps(a.lo, a.hi, 0x31));
}
inline F16 Fold4(F16 a, F16 b) { return {Fold4Half(a), Fold4Half(b)}; }
inline __m256 Fold2Half(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
inline F16 Fold2(F16 a, F16 b) { return {Fold2Half(a.lo, b.lo), Fold2Half(a.hi, b.hi)}; }
inline F16 Fold1(F16 a, F16 b) {
  const __m256 lo =
      _mm256_add_ps(_mm256_shuffle_ps(a.lo, b.lo, 0x88), _mm256_shuffle_ps(a.lo, b.lo, 0xdd));
  const __m256 hi =
      _mm256_add_ps(_mm256_shuffle_ps(a.hi, b.hi, 0x88), _mm256_shuffle_ps(a.hi, b.hi, 0xdd));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return {_mm256_permutevar8x32_ps(_mm256_unpacklo_ps(lo, hi), order),
          _mm256_permutevar8x32_ps(_mm256_unpackhi_ps(lo, hi), order)};
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
