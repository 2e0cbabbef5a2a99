#include "kernels/gemm/internal/tile_madd.inc.h"

namespace lapidary {
namespace {

struct Vector512 {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int kBytes = 64, kLanes = 16;
#define OP [[gnu::always_inline]] static
  OP Int Load(const void* p) { return _mm512_loadu_si512(p); }
  OP Int Broadcast32(const void* p) { return _mm512_set1_epi32(*static_cast<const int32_t*>(p)); }
  OP Int Set8(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
  OP Int Set16(int v) { return _mm512_set1_epi16(static_cast<short>(v)); }
  OP Int Set32(int v) { return _mm512_set1_epi32(v); }
  OP Int And(Int a, Int b) { return _mm512_and_si512(a, b); }
  OP Int Add16(Int a, Int b) { return _mm512_add_epi16(a, b); }
  OP Int Add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  OP Int ShiftRight16(Int a, unsigned n) { return _mm512_srli_epi16(a, n); }
  OP Int ShiftLeft16(Int a, unsigned n) { return _mm512_slli_epi16(a, n); }
  OP Int ShiftRightSigned16(Int a, unsigned n) { return _mm512_srai_epi16(a, n); }
  OP Int MultiplyAdd8(Int u, Int s) { return _mm512_maddubs_epi16(u, s); }
  OP Int MultiplyAdd16(Int a, Int b) { return _mm512_madd_epi16(a, b); }
  OP Int AddFifthBit(Int codes, const uint8_t* bits) {
    const __mmask64 set = *reinterpret_cast<const __mmask64*>(bits);
    return _mm512_mask_add_epi8(codes, set, codes, Set8(16));
  }
  OP Float AsFloat(Int a) { return _mm512_castsi512_ps(a); }
  OP Float Zero() { return _mm512_setzero_ps(); }
  OP Float BroadcastFloat(const float* p) { return _mm512_set1_ps(*p); }
  OP Float LoadFloat(const float* p) { return _mm512_load_ps(p); }
  OP void StoreFloat(float* p, Float v) { _mm512_store_ps(p, v); }
  OP Float LoadHalf(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  OP Float Fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  OP Float MinusFma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }
#undef OP
};

}  // namespace

constinit const TileSet kMaddAvx512Tiles = Make<Vector512>();

}  // namespace lapidary
