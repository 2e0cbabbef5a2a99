#include "kernels/gemm/internal/tile_madd.inc.h"

namespace lapidary {
namespace {

struct Vector256 {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int kBytes = 32, kLanes = 8;
#define OP [[gnu::always_inline]] static
  OP Int Load(const void* p) { return _mm256_loadu_si256(static_cast<const Int*>(p)); }
  OP Int Broadcast32(const void* p) { return _mm256_set1_epi32(*static_cast<const int32_t*>(p)); }
  OP Int Set8(int v) { return _mm256_set1_epi8(static_cast<char>(v)); }
  OP Int Set16(int v) { return _mm256_set1_epi16(static_cast<short>(v)); }
  OP Int Set32(int v) { return _mm256_set1_epi32(v); }
  OP Int And(Int a, Int b) { return _mm256_and_si256(a, b); }
  OP Int Add16(Int a, Int b) { return _mm256_add_epi16(a, b); }
  OP Int Add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  OP Int ShiftRight16(Int a, int n) { return _mm256_srli_epi16(a, n); }
  OP Int ShiftLeft16(Int a, int n) { return _mm256_slli_epi16(a, n); }
  OP Int ShiftRightSigned16(Int a, int n) { return _mm256_srai_epi16(a, n); }
  OP Int MultiplyAdd8(Int u, Int s) { return _mm256_maddubs_epi16(u, s); }
  OP Int MultiplyAdd16(Int a, Int b) { return _mm256_madd_epi16(a, b); }
  // codes + 16 where the bit of the byte is set: 32 bits, spread to bytes and tested.
  OP Int AddFifthBit(Int codes, const uint8_t* bits) {
    const Int all = Broadcast32(bits);
    const Int spread = _mm256_shuffle_epi8(
        all, _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
    const Int bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
    const Int set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    return _mm256_add_epi8(codes, _mm256_and_si256(set, Set8(16)));
  }
  OP Float AsFloat(Int a) { return _mm256_castsi256_ps(a); }
  OP Float Zero() { return _mm256_setzero_ps(); }
  OP Float BroadcastFloat(const float* p) { return _mm256_broadcast_ss(p); }
  OP Float LoadFloat(const float* p) { return _mm256_load_ps(p); }
  OP void StoreFloat(float* p, Float v) { _mm256_store_ps(p, v); }
  OP Float LoadHalf(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  OP Float Fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  OP Float MinusFma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
#undef OP
};

}  // namespace

constinit const TileSet kMaddAvx2Tiles = Make<Vector256>();

}  // namespace lapidary
