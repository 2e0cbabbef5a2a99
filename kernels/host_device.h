// Marks inline functions that kernels share with host code which is no kernel's.
#pragma once

#if !defined(GPU_HOST_DEVICE)
#if defined(__CUDACC__)
#define GPU_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GPU_HOST_DEVICE inline
#endif
#endif
