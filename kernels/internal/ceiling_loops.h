// Loops that do nothing but one instruction on twelve independent accumulators (latency 4 or 5 on
// two ports: ten would do). No inline function with external linkage: see
// kernels/gemm/internal/tile.h.
#pragma once
#include <cstdint>

namespace lapidary {

constexpr int64_t kCeilingSteps = 100000;
constexpr int kCeilingChains = 12;

void LoopAmx();         // products of 16 x 64 by 64 x 16, fewer steps: 512 per chain and step
void LoopVnni();        // 128 operations per chain and step
void LoopMaddAvx512();  // vpmaddubsw, vpmaddwd, vpaddd: 128
void LoopMaddAvx2();    // 64
void LoopFmaAvx512();   // 32
void LoopFmaAvx2();     // 16
void LoopDotBf16();     // 64
void ReadAvx2(const uint8_t* begin, int64_t bytes);

// LAPIDARY_LOOP(type, zero, step): twelve named accumulators of a vector type pass through an empty
// asm every step, so that they stay registers and the loop stays. `step(a)` is the new value.
#define LAPIDARY_CHAINS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define LAPIDARY_STEP(i) a##i = Step(a##i, u, v);
// NOLINTBEGIN(bugprone-macro-parentheses): a type takes none
#define LAPIDARY_LOOP(Type, zero)                                                                  \
  Type a0 = zero, a1 = zero, a2 = zero, a3 = zero, a4 = zero, a5 = zero, a6 = zero, a7 = zero,     \
       a8 = zero, a9 = zero, a10 = zero, a11 = zero;                                               \
  for (int64_t i = 0; i < kCeilingSteps; ++i) {                                                    \
    LAPIDARY_CHAINS(LAPIDARY_STEP)                                                                 \
    asm volatile(""                                                                                \
                 : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5), "+v"(a6), "+v"(a7), \
                   "+v"(a8), "+v"(a9), "+v"(a10), "+v"(a11));                                      \
  }
// NOLINTEND(bugprone-macro-parentheses)

}  // namespace lapidary
