// LAPIDARY_HOST_DEVICE marks inline functions that kernels share with host code which is no
// kernel's and does not include gpu.h.
#pragma once

#if defined(__CUDACC__)
#define LAPIDARY_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LAPIDARY_HOST_DEVICE __attribute__((always_inline)) inline
#endif
