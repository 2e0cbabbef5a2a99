// One block per row: chunks of 16 bytes go through a ring of cp.async stages, each thread sums its
// own, then shuffles and shared memory join the threads. Reads 4 bytes per addition: memory-bound.
#include "kernels/gpu.h"
#include "kernels/simt/tests/block_sum_cuda.h"

namespace lapidary {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kStages = 3;

__global__ void __launch_bounds__(kThreads)
    BlockSumKernel(const __grid_constant__ BlockSumParams p) {
  GPU_DYN_SMEM(float4, ring);  // [kStages][kThreads]
  GPU_SHARED(partial, float[kWarps]);
  const int thread = static_cast<int>(threadIdx.x);
  const float* row = p.x + int64_t{blockIdx.x} * p.width;
  const int64_t chunks = p.width / 4;
  const int64_t rounds = (chunks + kThreads - 1) / kThreads;
  auto fetch = [&](int64_t round) {
    const int64_t chunk = round * kThreads + thread;
    const bool take = chunk < chunks;
    gpu::CpAsync16(&ring[round % kStages * kThreads + thread], take ? row + chunk * 4 : row, take);
  };
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < rounds) fetch(i);
    gpu::CpAsyncCommit();
  }
  float sum = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    gpu::CpAsyncWait<kStages - 2>();
    const float4 v = gpu::Load<float4>(&ring[round % kStages * kThreads + thread]);
    sum += (v.x + v.y) + (v.z + v.w);
    if (round + kStages - 1 < rounds) fetch(round + kStages - 1);
    gpu::CpAsyncCommit();
  }
  sum = gpu::WarpSum(sum);
  if (thread % 32 == 0) partial[thread / 32] = sum;
  __syncthreads();
  if (thread == 0) {
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[w];
    p.sum[blockIdx.x] = total;
  }
}

}  // namespace

cudaError_t LaunchBlockSum(const BlockSumParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > INT32_MAX || p.width < 0 || p.width % 4 != 0) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  return gpu::Launch(BlockSumKernel,
                     {.name = "block_sum",
                      .grid = dim3(static_cast<unsigned>(p.rows)),
                      .block = dim3(kThreads),
                      .shared_bytes = kStages * kThreads * sizeof(float4),
                      .stream = stream},
                     p);
}

}  // namespace lapidary
