#include <cstdint>

#include "kernels/internal/ceiling_loops.h"

namespace lapidary {

namespace {

// The operand of ldtilecfg: eight full tiles.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace

// 32768 operations a product, 64 times those that are counted for it. Four sums: their latency is
// 52 cycles, their rate one in 16.
void LoopAmx() {
  const TileShapes shapes;
  asm volatile("ldtilecfg %0" : : "m"(shapes));
  for (int64_t i = 0; i < kCeilingSteps * kCeilingChains / (4 * 64); ++i) {
    asm volatile(
        "tdpbsud %tmm6, %tmm4, %tmm0\n"
        "tdpbsud %tmm7, %tmm4, %tmm1\n"
        "tdpbsud %tmm6, %tmm5, %tmm2\n"
        "tdpbsud %tmm7, %tmm5, %tmm3");
  }
  asm volatile("tilerelease");
}

}  // namespace lapidary
