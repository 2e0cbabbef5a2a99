// What the tests of the attention kernels share: the chips to be, and steps of number formats. Host
// code over the CUDA runtime: it runs under emulation and on a GPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/chip.h"
#include "kernels/device_test_support.h"
#include "kernels/test_devices.h"

namespace lapidary {

inline bool Emulated() {
#ifdef LAPIDARY_EMULATION
  return true;
#else
  return false;
#endif
}

// Under emulation one chip for each way the kernels are built; else the device's own.
inline std::vector<Chip> ChipsToTest() {
  if (Emulated()) {
    return {{.compute_capability = 80, .processors = 4, .shared_bytes = 163 << 10},
            {.compute_capability = 89, .processors = 4, .shared_bytes = 99 << 10},
            {.compute_capability = 90, .processors = 4, .shared_bytes = 227 << 10},
            {.compute_capability = 120, .processors = 4, .shared_bytes = 99 << 10}};
  }
  EXPECT_GT(Devices(), 0);
  return {ThisChip()};
}

inline float E4m3(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

// Half the distance of neighbours at x: what rounding to nearest errs by at most. bf16 has 8 bits
// of precision, e4m3 has 4 and its smallest normal number is 2^-6.
inline double HalfStepBf16(double x) { return x == 0 ? 0 : std::ldexp(1.0, std::ilogb(x) - 8); }
inline double HalfStepE4m3(double x) {
  return std::ldexp(1.0, std::max(x == 0 ? -6 : std::ilogb(x), -6) - 4);
}

}  // namespace lapidary
