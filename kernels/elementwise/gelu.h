// Device code: the activation function of the gated products.
#pragma once
#include "kernels/gpu.h"

namespace lapidary {

// gelu, tanh form, as x / (1 + 2^z), z = -2 sqrt(2/pi) log2(e) (x + 0.044715 x^3): with the
// logistic function small negative results keep their relative precision, and nothing cancels.
//
// Relative error below (|z| + 3) 2^-22: z errs by four roundings of itself, and 2^z by ln 2 times
// that, 2^-22 in its own evaluation; the sum and the division add 2^-23 and 2^-22. Where 2^z
// overflows (x < -10) the result is 0, the true value below 2^-120.
GPU_DEVICE float GeluTanh(float x) {
  constexpr float kLinear = -2.3022082f;  // -2 sqrt(2/pi) log2(e)
  constexpr float kCubic = -0.10294324f;  // times 0.044715
  const float z = x * fmaf(x * x, kCubic, kLinear);
  return __fdividef(x, 1.0f + gpu::Exp2Approx(z));
}

}  // namespace lapidary
