// How many GPUs a test may use: nine under emulation, what there is elsewhere.
#pragma once
#include <cuda_runtime_api.h>

namespace lapidary {

inline int Gpus() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

}  // namespace lapidary

// Leaves a test that takes more GPUs than there are.
#define LAPIDARY_NEEDS_GPUS(count) \
  if (::lapidary::Gpus() < (count)) GTEST_SKIP() << "takes " << (count) << " GPUs"
