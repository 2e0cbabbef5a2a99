// What the executor's parts cost: figures for planning test sizes.
#include <benchmark/benchmark.h>

#include "kernels/simt/tests/run_kernel.h"

namespace lapidary::simt {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// Of this thread: the first 4096 floats are read by all.
__device__ float& Own(float* out) { return out[4096 + blockIdx.x * blockDim.x + threadIdx.x]; }

__global__ void Empty(float* out, int) { Own(out) = 1; }
__global__ void Barriers(float* out, int n) {
  for (int i = 0; i < n; ++i) __syncthreads();
  Own(out) = 1;
}
__global__ void Shuffles(float* out, int n) {
  float v = static_cast<float>(threadIdx.x);
  for (int i = 0; i < n; ++i) v += __shfl_xor_sync(kAll, v, 1);
  Own(out) = v;
}
__global__ void Syncwarps(float* out, int n) {
  for (int i = 0; i < n; ++i) __syncwarp();
  Own(out) = 1;
}
__global__ void NamedBarriers(float* out, int n) {
  const int half = static_cast<int>(threadIdx.x / (blockDim.x / 2));
  for (int i = 0; i < n; ++i) gpu::NamedBarrierSync(1 + half, static_cast<int>(blockDim.x / 2));
  Own(out) = 1;
}
__global__ void Products(float* out, int n) {
  float d[4] = {};
  const uint32_t a[4] = {1, 2, 3, 4};
  for (int i = 0; i < n; ++i) gpu::MmaBf16(d, a, 5, 6);
  Own(out) = d[0];
}
__global__ void Ldmatrices(float* out, int n) {
  GPU_DYN_SMEM(uint4, s);
  s[threadIdx.x] = uint4{1, 2, 3, 4};
  __syncwarp();
  uint32_t r[4], sum = 0;
  for (int i = 0; i < n; ++i) {
    gpu::Ldmatrix4(r, s + threadIdx.x);
    sum += r[0];
  }
  Own(out) = static_cast<float>(sum);
}
__global__ void Copies(float* out, int n) {
  GPU_DYN_SMEM(uint4, s);
  for (int i = 0; i < n; ++i) {
    gpu::CpAsync16(s + threadIdx.x, out + 4 * threadIdx.x);
    gpu::CpAsyncCommit();
    gpu::CpAsyncWait<0>();
  }
  Own(out) = 0;
}
__global__ void Loads(float* out, int n) {
  float v = 0;
  for (int i = 0; i < n; ++i) v += gpu::Load<float4>(out + 4 * (i % 8)).x;
  Own(out) = v;
}
__global__ void Warpgroups(float* out, int n) {
  GPU_DYN_SMEM(uint4, s);
  for (int i = 0; i < 8; ++i) s[i * 128 + threadIdx.x] = uint4{0, 0, 0, 0};
  gpu::FenceProxyAsync();
  __syncthreads();
  float d[32] = {};
  for (int i = 0; i < n; ++i) {
    gpu::WgmmaFence();
    for (int k = 0; k < 4; ++k) {
      gpu::WgmmaM64N64K16(d, gpu::WgmmaDescriptor(s + 2 * k),
                          gpu::WgmmaDescriptor(s + 512 + 2 * k));
    }
    gpu::WgmmaCommit();
    gpu::WgmmaWait<0>();
  }
  Own(out) = d[0];
}

// Time per operation: each thread (per_warp: each warp) does `turns` of them.
void Run(benchmark::State& state, void (*kernel)(float*, int), unsigned blocks, unsigned threads,
         int turns, double operations) {
  Buffer<float> out(4096 + blocks * threads);
  out.Fill(0);
  for ([[maybe_unused]] auto _ : state) {
    const auto failures = Failures({blocks, threads, 16384}, kernel, out.data(), turns);
    if (!failures.empty()) state.SkipWithError(failures[0].c_str());
  }
  state.counters["per_operation"] = benchmark::Counter(
      operations, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
#define LAPIDARY_BENCH(name, kernel, blocks, threads, turns, operations) \
  BENCHMARK_CAPTURE(Run, name, kernel, blocks, threads, turns, operations)
LAPIDARY_BENCH(ThreadOf128, Empty, 800, 128, 0, 800.0 * 128);
LAPIDARY_BENCH(ThreadOf1024, Empty, 100, 1024, 0, 100.0 * 1024);
LAPIDARY_BENCH(BarrierPerThread, Barriers, 4, 256, 500, 4.0 * 256 * 500);
LAPIDARY_BENCH(NamedBarrierPerThread, NamedBarriers, 4, 256, 500, 4.0 * 256 * 500);
LAPIDARY_BENCH(ShufflePerLane, Shuffles, 4, 128, 1000, 4.0 * 128 * 1000);
LAPIDARY_BENCH(SyncwarpPerLane, Syncwarps, 4, 128, 1000, 4.0 * 128 * 1000);
LAPIDARY_BENCH(MmaPerWarp, Products, 1, 128, 1000, 4.0 * 1000);
LAPIDARY_BENCH(LdmatrixPerWarp, Ldmatrices, 1, 128, 1000, 4.0 * 1000);
LAPIDARY_BENCH(CopyPerThread, Copies, 1, 128, 1000, 128.0 * 1000);
LAPIDARY_BENCH(LoadPerThread, Loads, 1, 128, 1000, 128.0 * 1000);
LAPIDARY_BENCH(WgmmaPerGroup, Warpgroups, 1, 128, 50, 4.0 * 50);

}  // namespace
}  // namespace lapidary::simt
BENCHMARK_MAIN();
