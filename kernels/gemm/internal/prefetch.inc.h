// Included by the tile_*.cc alone (see tile.h about inline functions).
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lapidary {
namespace {

// The weights needed next, a line per step: bursts stall the loads behind them. Into L2, which has
// three times as many requests in flight as L1.
//   stream: one pass over the weights; a block ahead per block, so the count is a constant
//   else:   several passes; each brings `lines` per block
template <bool kStream, int kSteps, int kLines>
[[gnu::always_inline]] inline void PrefetchStep(const uint8_t* p, int step, int lines) {
  if constexpr (kStream) {
#pragma GCC unroll 4
    for (int i = step; i < kLines; i += kSteps) _mm_prefetch(p + i * 64, _MM_HINT_T1);
  } else {
    if (step < lines) _mm_prefetch(p + step * 64, _MM_HINT_T1);
    if (step == 0 && kSteps < lines) _mm_prefetch(p + kSteps * 64, _MM_HINT_T1);
  }
}

}  // namespace
}  // namespace lapidary
