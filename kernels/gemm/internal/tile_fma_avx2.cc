#include "kernels/gemm/internal/tile_fma.inc.h"

namespace lapidary {
namespace {

struct Vector256 {
  using Float = __m256;
  static constexpr int kBytes = 32, kLanes = 8;
#define OP [[gnu::always_inline]] static
  OP Float Zero() { return _mm256_setzero_ps(); }
  OP Float BroadcastFloat(const void* p) {
    return _mm256_broadcast_ss(static_cast<const float*>(p));
  }
  OP Float LoadFloat(const void* p) { return _mm256_load_ps(static_cast<const float*>(p)); }
  OP void StoreFloat(float* p, Float v) { _mm256_store_ps(p, v); }
  OP Float Fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  OP Float EvenBf16(const void* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(*static_cast<const __m256i*>(p), 16));
  }
  OP Float OddBf16(const void* p) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(_mm256_and_si256(*static_cast<const __m256i*>(p), high));
  }
#undef OP
};

}  // namespace

constinit const TileSet kFmaAvx2Tiles = Make<Vector256, 6>();

}  // namespace lapidary
