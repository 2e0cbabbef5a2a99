// The devices that a test may use: those of the machine, or of its emulation.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/chip.h"

namespace lapidary {

inline int Devices() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

// The first one.
inline Chip ThisChip() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return {};
  return {.compute_capability = properties.major * 10 + properties.minor,
          .processors = properties.multiProcessorCount,
          .shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin)};
}

}  // namespace lapidary

// Leaves a test that takes more devices than there are.
#define LAPIDARY_NEEDS_DEVICES(count) \
  if (::lapidary::Devices() < (count)) GTEST_SKIP() << "takes " << (count) << " devices"
