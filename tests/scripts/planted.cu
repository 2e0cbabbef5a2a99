// Kernels for kernel_report_test.py: one as the gates want it, and one that does each thing wrong.
#include "kernels/gpu.h"

namespace lapidary {
namespace {

enum class KvFormat { kSplit, kFolded };  // the numbers of common/base/dtype.h

struct PlantedParams {
  const uint4* from;
  float* to;
  int count;
};

// Two loops, one in the other: 1 load of 16 bytes in the outer, 2 of them and 2 products in the
// inner. Dynamic shared memory.
template <KvFormat kFormat>
__global__ void __launch_bounds__(128) TiledKernel(const __grid_constant__ PlantedParams p) {
  GPU_DYN_SMEM(uint4, ring);
  float sum[4] = {};
#pragma unroll 1
  for (int i = 0; i < p.count; ++i) {
    ring[threadIdx.x] = p.from[i * 128 + threadIdx.x];
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < p.count; ++j) {
      const uint4 v = p.from[(i + j) * 256 + threadIdx.x], b = p.from[(i + j) * 256 + 128];
      const uint32_t a[4] = {v.x, v.y, v.z, v.w};
      gpu::MmaBf16(sum, a, b.x, b.y);
      gpu::MmaBf16(sum, a, b.z, b.w);
    }
    __syncthreads();
  }
  p.to[threadIdx.x] = sum[0] + sum[1] + sum[2] + sum[3] + static_cast<float>(ring[0].x);
}

// Keeps more numbers than it has registers, loads 4 bytes at a time, and has no product.
__global__ void __launch_bounds__(1024, 2) SpillingKernel(const __grid_constant__ PlantedParams p) {
  GPU_SHARED(last, float[256]);
  const auto* from = reinterpret_cast<const float*>(p.from);
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) kept[i] = from[i * 1024 + threadIdx.x];
  __syncthreads();
  last[threadIdx.x % 256] = kept[0];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p.to[(63 - i) * 1024 + threadIdx.x] = kept[i] * kept[(i * 7) % 64];
  p.to[threadIdx.x] += last[255 - threadIdx.x % 256];
}

// Empty on chips that lack what it needs.
__global__ void __launch_bounds__(96) NewChipsKernel(const __grid_constant__ PlantedParams p) {
#if GPU_HAS_BULK_COPY
  p.to[threadIdx.x] = 1;
#endif
}

}  // namespace

// Keeps them in the object file.
const void* Planted(int i) {
  const void* kernels[] = {reinterpret_cast<const void*>(&TiledKernel<KvFormat::kFolded>),
                           reinterpret_cast<const void*>(&SpillingKernel),
                           reinterpret_cast<const void*>(&NewChipsKernel)};
  return kernels[i];
}

}  // namespace lapidary
