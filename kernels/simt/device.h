// The half of kernels/gpu.h that a host compiler sees: CUDA's keywords, built-in variables and
// functions, and the wrappers of namespace gpu, as calls of the executor. Include gpu.h, not this.
//
// What is not here is not supported: textures, clusters, cooperative groups, dynamic parallelism.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __grid_constant__
#undef __host__
#undef __launch_bounds__
#undef __managed__
#undef __noinline__
#undef __shared__
#define __constant__
#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
#define __noinline__
#define __shared__ static_assert(false, "use GPU_SHARED or GPU_DYN_SMEM");

// Always inlined, as with nvcc. The checked flavour needs it, too: GCC does not instrument the
// store of a structure that a call returns.
#define LAPIDARY_SIMT_INLINED __attribute__((always_inline)) inline
#define GPU_DEVICE LAPIDARY_SIMT_INLINED
#define GPU_HOST_DEVICE LAPIDARY_SIMT_INLINED

// Executor code that kernels inline: its own accesses are none of the kernel's.
#define LAPIDARY_SIMT_INTERNAL __attribute__((no_sanitize("thread")))

#include "kernels/simt/shared_memory.h"
#include "kernels/simt/thread.h"

namespace lapidary::simt {

LAPIDARY_SIMT_INTERNAL inline uint3 ThreadIndex() { return current_thread->index; }
LAPIDARY_SIMT_INTERNAL inline uint3 BlockIndex() { return current_thread->block->index; }
LAPIDARY_SIMT_INTERNAL inline dim3 BlockSize() { return current_thread->block->size; }
LAPIDARY_SIMT_INTERNAL inline dim3 GridSize() { return current_thread->block->grid; }
LAPIDARY_SIMT_INTERNAL inline unsigned char* DynamicShared() {
  return current_thread->block->shared;
}

}  // namespace lapidary::simt

#define threadIdx (::lapidary::simt::ThreadIndex())
#define blockIdx (::lapidary::simt::BlockIndex())
#define blockDim (::lapidary::simt::BlockSize())
#define gridDim (::lapidary::simt::GridSize())
inline constexpr int warpSize = 32;

#define GPU_DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(::lapidary::simt::DynamicShared())
#define GPU_SHARED(name, ...)                                                               \
  static char name##_key_;                                                                  \
  ::lapidary::gpu::TypeOf<__VA_ARGS__>& name =                                              \
      *static_cast<::lapidary::gpu::TypeOf<__VA_ARGS__>*>(::lapidary::simt::SharedVariable( \
          &name##_key_, sizeof(::lapidary::gpu::TypeOf<__VA_ARGS__>),                       \
          alignof(::lapidary::gpu::TypeOf<__VA_ARGS__>)))

#include "kernels/simt/device_atomics.h"
#include "kernels/simt/device_gpu.h"
#include "kernels/simt/device_math.h"
#include "kernels/simt/device_memory.h"
#include "kernels/simt/device_warp.h"
