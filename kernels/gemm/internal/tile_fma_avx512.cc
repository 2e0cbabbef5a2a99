#include "kernels/gemm/internal/tile_fma.inc.h"

namespace lapidary {
namespace {

struct Vector512 {
  using Float = __m512;
  static constexpr int kBytes = 64, kLanes = 16;
#define OP [[gnu::always_inline]] static
  OP Float Zero() { return _mm512_setzero_ps(); }
  OP Float BroadcastFloat(const void* p) { return _mm512_set1_ps(*static_cast<const float*>(p)); }
  OP Float LoadFloat(const void* p) { return _mm512_load_ps(p); }
  OP void StoreFloat(float* p, Float v) { _mm512_store_ps(p, v); }
  OP Float Fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  OP Float EvenBf16(const void* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
  }
  OP Float OddBf16(const void* p) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high));
  }
#undef OP
};

}  // namespace

constinit const TileSet kFmaAvx512Tiles = Make<Vector512, 12>();

}  // namespace lapidary
