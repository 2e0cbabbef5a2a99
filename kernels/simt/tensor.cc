#include "kernels/simt/tensor.h"

#include <array>
#include <cmath>
#include <cstring>

#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"
#include "kernels/simt/shared_memory.h"
#include "kernels/simt/warp.h"

namespace lapidary::simt {
namespace {

float Bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

struct LoadOperand {
  const void* row;
  uint32_t* r;
};

template <int kCount, bool kTranspose>
void LoadAll(void** operand, uint32_t, Site) {
  for (int i = 0; i < kCount; ++i) {
    uint16_t m[8][8];
    for (int j = 0; j < 8; ++j) {
      memcpy(m[j], static_cast<LoadOperand*>(operand[i * 8 + j])->row, sizeof m[j]);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t2 = lane % 4 * 2;
      const uint32_t low = kTranspose ? m[t2][g] : m[g][t2];
      const uint32_t high = kTranspose ? m[t2 + 1][g] : m[g][t2 + 1];
      static_cast<LoadOperand*>(operand[lane])->r[i] = low | high << 16;
    }
  }
}

struct MultiplyOperand {
  float* d;
  const uint32_t *a, *b;
};

// Register i of the two-row fragments: row g + 8 (i % 2) for A, rows by pairs for D.
struct Accumulators {
  alignas(32) float row[16][8];

  void Gather(void** operand) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float* d = static_cast<MultiplyOperand*>(operand[lane])->d;
      const int g = lane / 4, t2 = lane % 4 * 2;
      memcpy(&row[g][t2], d, 8);
      memcpy(&row[g + 8][t2], d + 2, 8);
    }
  }
  void Scatter(void** operand) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      float* d = static_cast<MultiplyOperand*>(operand[lane])->d;
      const int g = lane / 4, t2 = lane % 4 * 2;
      memcpy(d, &row[g][t2], 8);
      memcpy(d + 2, &row[g + 8][t2], 8);
    }
  }
  template <int kDepth>
  void Add(const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
    for (int m = 0; m < 16; ++m) {
      alignas(32) float sum[8];
      memcpy(sum, row[m], sizeof sum);
      for (int k = 0; k < kDepth; ++k) {
        for (int n = 0; n < 8; ++n) sum[n] += a[m][k] * b[k][n];
      }
      memcpy(row[m], sum, sizeof sum);
    }
  }
};

void MultiplyBf16All(void** operand, uint32_t, Site) {
  alignas(32) float a[16][16];
  alignas(32) float b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto* o = static_cast<MultiplyOperand*>(operand[lane]);
    const int g = lane / 4, t2 = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      float* to = &a[g + i % 2 * 8][t2 + i / 2 * 8];
      to[0] = Bits(o->a[i] << 16);
      to[1] = Bits(o->a[i] & 0xffff0000u);
    }
    for (int i = 0; i < 2; ++i) {
      b[t2 + i * 8][g] = Bits(o->b[i] << 16);
      b[t2 + i * 8 + 1][g] = Bits(o->b[i] & 0xffff0000u);
    }
  }
  Accumulators d;
  d.Gather(operand);
  d.Add(a, b);
  d.Scatter(operand);
}

std::array<float, 256> MakeE4m3Values() {
  std::array<float, 256> values;
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float v = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                            : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((code & 0x7f) == 0x7f) v = NAN;
    values[code] = code & 0x80 ? -v : v;
  }
  return values;
}
const std::array<float, 256>& E4m3Values() {
  static const std::array<float, 256> values = MakeE4m3Values();
  return values;
}

void MultiplyE4m3All(void** operand, uint32_t, Site) {
  const float* value = E4m3Values().data();
  alignas(32) float a[16][32];
  alignas(32) float b[32][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto* o = static_cast<MultiplyOperand*>(operand[lane]);
    const int g = lane / 4, t4 = lane % 4 * 4;
    for (int byte = 0; byte < 4; ++byte) {
      for (int i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][t4 + byte + i / 2 * 16] = value[o->a[i] >> 8 * byte & 0xff];
      }
      for (int i = 0; i < 2; ++i) b[t4 + byte + i * 16][g] = value[o->b[i] >> 8 * byte & 0xff];
    }
  }
  Accumulators d;
  d.Gather(operand);
  d.Add(a, b);
  d.Scatter(operand);
}

}  // namespace

void LoadMatrices(uint32_t* r, int count, const void* row, bool transpose, Site site) {
  LoadOperand operand{row, r};
  if (static_cast<int>(current_thread->lane) < 8 * count) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      Fail(site, "ldmatrix: row %p is not aligned to 16", row);
    }
    if (!InShared(row, 16)) {
      Fail(site, "ldmatrix: the row is not in the block's shared memory");
      operand.row = CurrentBlock().shared;
    }
    if (monitor) monitor->OnAccess(operand.row, 16, Access::kRead, site, nullptr);
  }
  if (count == 2) {
    MeetWarp(site, &operand, transpose ? &LoadAll<2, true> : &LoadAll<2, false>);
  } else {
    MeetWarp(site, &operand, transpose ? &LoadAll<4, true> : &LoadAll<4, false>);
  }
}

uint32_t TransposeMatrix(uint32_t v, Site site) {
  struct Operand {
    uint32_t in, out;
  } operand{v, 0};
  MeetWarp(site, &operand, [](void** all, uint32_t, Site) {
    uint16_t m[8][8];
    for (int lane = 0; lane < kLanes; ++lane) {
      memcpy(&m[lane / 4][lane % 4 * 2], &static_cast<Operand*>(all[lane])->in, 4);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t2 = lane % 4 * 2;
      static_cast<Operand*>(all[lane])->out = m[t2][g] | uint32_t{m[t2 + 1][g]} << 16;
    }
  });
  return operand.out;
}

void MultiplyBf16(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  MultiplyOperand operand{d, a, b};
  MeetWarp(site, &operand, &MultiplyBf16All);
}

void MultiplyE4m3(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  MultiplyOperand operand{d, a, b};
  MeetWarp(site, &operand, &MultiplyE4m3All);
}

float E4m3Value(uint8_t code) { return E4m3Values()[code]; }

}  // namespace lapidary::simt
