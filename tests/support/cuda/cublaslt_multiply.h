// The product itself, on the CPU: fp32 sums in blocks that the compiler vectorises.
#pragma once
#include "tests/support/cuda/cublaslt_types.h"

namespace lapidary::standin {

struct LtCall {
  LtDesc desc;
  LtLayout layout_a, layout_b, layout_c, layout_d;
  const void *a, *b, *c;
  void* d;
  float alpha = 1, beta = 0;                                    // of the host
  const float *device_alpha = nullptr, *device_beta = nullptr;  // else
};
// Run as device work.
void LtMultiply(const LtCall& call);

}  // namespace lapidary::standin
