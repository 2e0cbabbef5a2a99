// Each kernel is one wrapper between loads and stores: nothing here is fast.
#include "kernels/gpu.h"
#include "kernels/simt/tests/wrappers_cuda.h"

namespace lapidary {
namespace {

constexpr unsigned kAll = 0xffffffffu;

enum class Matrix { k4, k4Trans, k2 };
template <Matrix kMatrix>
__global__ void Ldmatrix(const __grid_constant__ WrapperParams p) {
  GPU_DYN_SMEM(uint4, rows);
  const unsigned lane = threadIdx.x;
  rows[lane] = gpu::Load<uint4>(static_cast<const uint4*>(p.a) + lane);
  __syncwarp();
  uint32_t* out = static_cast<uint32_t*>(p.out);
  if constexpr (kMatrix == Matrix::k2) {
    uint32_t r[2];
    gpu::Ldmatrix2(r, &rows[lane % 16]);
    for (int i = 0; i < 2; ++i) out[lane * 2 + i] = r[i];
  } else {
    uint32_t r[4];
    if constexpr (kMatrix == Matrix::k4) gpu::Ldmatrix4(r, &rows[lane]);
    if constexpr (kMatrix == Matrix::k4Trans) gpu::Ldmatrix4Trans(r, &rows[lane]);
    for (int i = 0; i < 4; ++i) out[lane * 4 + i] = r[i];
  }
}

__global__ void MovmatrixKernel(const __grid_constant__ WrapperParams p) {
  const unsigned lane = threadIdx.x;
  static_cast<uint32_t*>(p.out)[lane] = gpu::Movmatrix(static_cast<const uint32_t*>(p.a)[lane]);
}

enum class Product { kBf16, kF16, kE4m3 };
template <Product kProduct>
__global__ void Mma(const __grid_constant__ WrapperParams p) {
#if !GPU_HAS_E4M3
  if constexpr (kProduct == Product::kE4m3) return;
#endif
  const unsigned lane = threadIdx.x;
  const uint32_t* a_in = static_cast<const uint32_t*>(p.a) + lane * 4;
  const uint32_t* b = static_cast<const uint32_t*>(p.b) + lane * 2;
  float* out = static_cast<float*>(p.out) + lane * 4;
  const uint32_t a[4] = {a_in[0], a_in[1], a_in[2], a_in[3]};
  float d[4] = {out[0], out[1], out[2], out[3]};
  if constexpr (kProduct == Product::kBf16) {
    gpu::MmaBf16(d, a, b[0], b[1]);
  } else if constexpr (kProduct == Product::kF16) {
    gpu::MmaF16(d, a, b[0], b[1]);
  } else {
#if GPU_HAS_E4M3
    gpu::MmaE4m3(d, a, b[0], b[1]);
#endif
  }
  for (int i = 0; i < 4; ++i) out[i] = d[i];
}

constexpr int kTileBytes = 64 * 128;

template <bool kBulk>
__global__ void __launch_bounds__(128) Wgmma(const __grid_constant__ WrapperParams p) {
#if GPU_HAS_WGMMA
  GPU_DYN_SMEM(unsigned char, tiles);  // [stages][A, B][kTileBytes]
  GPU_SHARED(full, gpu::Mbarrier[2]);
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned char* a = static_cast<const unsigned char*>(p.a);
  const unsigned char* b = static_cast<const unsigned char*>(p.b);
  auto fetch = [&](int i) {
    unsigned char* to = tiles + i % 2 * 2 * kTileBytes;
    if constexpr (kBulk) {
      if (thread != 0) return;
      gpu::MbarrierArriveExpect(&full[i % 2], 2 * kTileBytes);
      gpu::BulkCopyToShared(to, a + int64_t{i} * kTileBytes, kTileBytes, &full[i % 2]);
      gpu::BulkCopyToShared(to + kTileBytes, b + int64_t{i} * kTileBytes, kTileBytes, &full[i % 2]);
    } else {
      for (int j = thread * 16; j < kTileBytes; j += 128 * 16) {
        gpu::CpAsync16(to + j, a + int64_t{i} * kTileBytes + j);
        gpu::CpAsync16(to + kTileBytes + j, b + int64_t{i} * kTileBytes + j);
      }
      gpu::CpAsyncCommit();
    }
  };
  if (kBulk && thread == 0) {
    for (int i = 0; i < 2; ++i) gpu::MbarrierInit(&full[i], 1);
    gpu::FenceMbarrierInit();
  }
  __syncthreads();
  float d[32] = {};
  if (p.n > 0) fetch(0);
  for (int i = 0; i < p.n; ++i) {
    if (i + 1 < p.n) {
      fetch(i + 1);
    } else if (!kBulk) {
      gpu::CpAsyncCommit();
    }
    if constexpr (kBulk) {
      gpu::MbarrierWait(&full[i % 2], i / 2 % 2);
    } else {
      gpu::CpAsyncWait<1>();
      gpu::FenceProxyAsync();
      __syncthreads();
    }
    const unsigned char* stage = tiles + i % 2 * 2 * kTileBytes;
    gpu::WgmmaFence();
    for (int k = 0; k < 64; k += 16) {
      gpu::WgmmaM64N64K16(d, gpu::WgmmaDescriptor(stage + k * 2),
                          gpu::WgmmaDescriptor(stage + kTileBytes + k * 2));
    }
    gpu::WgmmaCommit();
    gpu::WgmmaWait<0>();
    __syncthreads();
  }
  for (int i = 0; i < 32; ++i) static_cast<float*>(p.out)[thread * 32 + i] = d[i];
#endif
}

__global__ void __launch_bounds__(128) Wgmma128(const __grid_constant__ WrapperParams p) {
#if GPU_HAS_WGMMA
  GPU_DYN_SMEM(unsigned char, tiles);  // A, then B of twice its size
  GPU_SHARED(full, gpu::Mbarrier);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    gpu::MbarrierInit(&full, 1);
    gpu::FenceMbarrierInit();
  }
  __syncthreads();
  float d[64] = {};
  for (int i = 0; i < p.n; ++i) {
    if (thread == 0) {
      const unsigned char* a = static_cast<const unsigned char*>(p.a) + int64_t{i} * kTileBytes;
      const unsigned char* b = static_cast<const unsigned char*>(p.b) + int64_t{i} * 2 * kTileBytes;
      gpu::MbarrierArriveExpect(&full, 3 * kTileBytes);
      gpu::BulkCopyToShared(tiles, a, kTileBytes, &full);
      gpu::BulkCopyToShared(tiles + kTileBytes, b, 2 * kTileBytes, &full);
    }
    gpu::MbarrierWait(&full, i % 2);
    gpu::WgmmaFence();
    for (int k = 0; k < 64; k += 16) {
      gpu::WgmmaM64N128K16(d, gpu::WgmmaDescriptor(tiles + k * 2),
                           gpu::WgmmaDescriptor(tiles + kTileBytes + k * 2));
    }
    gpu::WgmmaCommit();
    gpu::WgmmaWait<0>();
    __syncthreads();
  }
  for (int i = 0; i < 64; ++i) static_cast<float*>(p.out)[thread * 64 + i] = d[i];
#endif
}

__global__ void Widen(const __grid_constant__ WrapperParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= p.n) return;
  uint32_t* out = static_cast<uint32_t*>(p.out) + 2 * i;
  gpu::WidenE4m3(static_cast<const uint32_t*>(p.a)[i], &out[0], &out[1]);
}

__global__ void CopyPart(const __grid_constant__ WrapperParams p) {
  GPU_DYN_SMEM(uint4, chunks);
  const int i = static_cast<int>(threadIdx.x);
  gpu::CpAsyncUpTo16(&chunks[i], static_cast<const uint4*>(p.a) + i, i < 17 ? i : 0);
  gpu::CpAsyncCommit();
  gpu::CpAsyncWait<0>();
  gpu::Store(static_cast<uint4*>(p.out) + i, chunks[i]);
}

__global__ void Exp2(const __grid_constant__ WrapperParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < p.n) static_cast<float*>(p.out)[i] = gpu::Exp2Approx(static_cast<const float*>(p.a)[i]);
}

__global__ void Pack(const __grid_constant__ WrapperParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const float* a = static_cast<const float*>(p.a);
  if (i < p.n) static_cast<uint32_t*>(p.out)[i] = gpu::PackBf16(a[2 * i], a[2 * i + 1]);
}

__global__ void MulPairs(const __grid_constant__ WrapperParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const uint32_t *a = static_cast<const uint32_t*>(p.a), *b = static_cast<const uint32_t*>(p.b);
  if (i < p.n) static_cast<uint32_t*>(p.out)[i] = gpu::MulBf16x2(a[i], b[i]);
}

__global__ void Integers(const __grid_constant__ WrapperParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= p.n) return;
  const unsigned a = static_cast<const unsigned*>(p.a)[i], b = static_cast<const unsigned*>(p.b)[i];
  const int sa = static_cast<int>(a), sb = static_cast<int>(b);
  const unsigned long long wide = static_cast<unsigned long long>(a) << 32 | b;
  unsigned* out = static_cast<unsigned*>(p.out) + i * kIntegerResults;
  out[0] = static_cast<unsigned>(__popc(a));
  out[1] = static_cast<unsigned>(__popcll(wide));
  out[2] = static_cast<unsigned>(__clz(sa));
  out[3] = static_cast<unsigned>(__clzll(static_cast<long long>(wide)));
  out[4] = static_cast<unsigned>(__ffs(sa));
  out[5] = __brev(a);
  out[6] = __umulhi(a, b);
  out[7] = static_cast<unsigned>(__mulhi(sa, sb));
  out[8] = static_cast<unsigned>(__umul64hi(wide, wide ^ 0x123456789abcdefull));
  out[9] = __byte_perm(a, b, b & 0xffff);
  out[10] = __funnelshift_l(a, b, b & 63);
  out[11] = __funnelshift_r(a, b, b & 63);
  out[12] = static_cast<unsigned>(min(sa, sb));
  out[13] = max(a, b);
  out[14] = static_cast<unsigned>(__dp4a(sa, sb, 7));
  out[15] = static_cast<unsigned>(min(sa, static_cast<int>(b >> 1)));
}

__global__ void Floats(const __grid_constant__ WrapperParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= p.n) return;
  const float a = static_cast<const float*>(p.a)[i], b = static_cast<const float*>(p.b)[i];
  float* out = static_cast<float*>(p.out) + i * kFloatResults;
  out[0] = __fadd_rn(a, b);
  out[1] = __fsub_rn(a, b);
  out[2] = __fmul_rn(a, b);
  out[3] = __fmaf_rn(a, b, a);
  out[4] = __fdiv_rn(a, b);
  out[5] = __fsqrt_rn(fabsf(a));
  out[6] = __frcp_rn(b);
  out[7] = __int_as_float(__float2int_rn(a));
  out[8] = __int_as_float(__float2int_rz(a));
  out[9] = __uint_as_float(__float2uint_rn(b));
  out[10] = __int_as_float(__float2int_ru(a));
  out[11] = __int_as_float(__float2int_rd(a));
  out[12] = __int2float_rn(__float_as_int(a));
  out[13] = __double2float_rn(static_cast<double>(a) * static_cast<double>(b));
  out[14] = __saturatef(a);
  out[15] = fminf(a, b);
}

__global__ void WarpFunctions(const __grid_constant__ WrapperParams p) {
  const unsigned lane = threadIdx.x;
  const int v = static_cast<const int*>(p.a)[lane];
  int* out = static_cast<int*>(p.out) + lane * kWarpResults;
  out[0] = __shfl_sync(kAll, v, static_cast<int>(lane + 3));
  out[1] = __shfl_up_sync(kAll, v, 5);
  out[2] = __shfl_down_sync(kAll, v, 5);
  out[3] = __shfl_xor_sync(kAll, v, 17);
  out[4] = __shfl_sync(kAll, v, 9, 8);
  out[5] = __shfl_up_sync(kAll, v, 3, 8);
  out[6] = __shfl_down_sync(kAll, v, 3, 8);
  out[7] = __shfl_xor_sync(kAll, v, 9, 8);
  out[8] = static_cast<int>(__ballot_sync(kAll, v & 1));
  out[9] = __any_sync(kAll, v == 5);
  out[10] = __all_sync(kAll, v >= 0);
  out[11] = static_cast<int>(__match_any_sync(kAll, v % 5));
  int same = 7;
  out[12] = static_cast<int>(__match_all_sync(kAll, v / 1000, &same));
  out[13] = same;
  out[14] = __reduce_add_sync(kAll, v);
  out[15] = __reduce_max_sync(kAll, v);
  out[16] = __reduce_min_sync(kAll, v);
  out[17] = static_cast<int>(__reduce_xor_sync(kAll, static_cast<unsigned>(v)));
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  out[18] = __shfl_xor_sync(half, v, 8);
  out[19] = static_cast<int>(gpu::WarpSum(static_cast<float>(v)));
}

__global__ void Atomics(const __grid_constant__ WrapperParams p) {
  unsigned* out = static_cast<unsigned*>(p.out);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&out[0], i);
  atomicSub(&out[1], 2u);
  atomicMax(&out[2], i * 7 % 101);
  atomicMin(&out[3], i * 7 % 101);
  atomicInc(&out[4], 9u);
  atomicDec(&out[5], 9u);
  atomicAnd(&out[6], ~(1u << i % 8));
  atomicOr(&out[7], 1u << i % 20);
  atomicXor(&out[8], i);
  atomicAdd(reinterpret_cast<float*>(&out[9]), 0.5f);
  atomicAdd(reinterpret_cast<unsigned long long*>(&out[10]), 1ull << 31);
}

__global__ void SystemWords(const __grid_constant__ WrapperParams p) {
  uint32_t* out = static_cast<uint32_t*>(p.out);
  if (threadIdx.x == 0) gpu::StoreReleaseSystem(&out[0], *static_cast<const uint32_t*>(p.a));
  if (threadIdx.x != 32) return;
  const uint64_t begin = gpu::Nanoseconds();
  uint32_t seen = 0;
  while ((seen = gpu::LoadAcquireSystem(&out[0])) == 0) gpu::PeerPause();
  out[1] = seen;
  while (gpu::Nanoseconds() == begin) gpu::PeerPause();
  out[2] = gpu::Nanoseconds() > begin;
}

__global__ void NamedBarriers(const __grid_constant__ WrapperParams p) {
  GPU_SHARED(s, int[256]);
  const int thread = static_cast<int>(threadIdx.x), half = thread / 128;
  int got = 0;
  for (int i = 0; i < 4; ++i) {
    s[thread] = thread + i;
    gpu::NamedBarrierSync(1 + half, 128);
    got = s[thread ^ 64];
    gpu::NamedBarrierSync(1 + half, 128);
  }
  if (half == 0) {
    gpu::NamedBarrierArrive(3, 256);
  } else {
    gpu::NamedBarrierSync(3, 256);
    got += s[thread - 128];
  }
  static_cast<int*>(p.out)[thread] = got;
}

template <class K>
cudaError_t Launch(const char* name, K kernel, int threads, size_t shared, const WrapperParams& p,
                   cudaStream_t stream, int blocks = 1) {
  return gpu::Launch(kernel,
                     {.name = name,
                      .grid = dim3(static_cast<unsigned>(blocks)),
                      .block = dim3(static_cast<unsigned>(threads)),
                      .shared_bytes = shared,
                      .stream = stream},
                     p);
}
int Blocks(int n) { return (n + 127) / 128; }

}  // namespace

cudaError_t LaunchLdmatrix4(const WrapperParams& p, cudaStream_t stream) {
  return Launch("ldmatrix4", Ldmatrix<Matrix::k4>, 32, 512, p, stream);
}
cudaError_t LaunchLdmatrix4Trans(const WrapperParams& p, cudaStream_t stream) {
  return Launch("ldmatrix4_trans", Ldmatrix<Matrix::k4Trans>, 32, 512, p, stream);
}
cudaError_t LaunchLdmatrix2(const WrapperParams& p, cudaStream_t stream) {
  return Launch("ldmatrix2", Ldmatrix<Matrix::k2>, 32, 512, p, stream);
}
cudaError_t LaunchMovmatrix(const WrapperParams& p, cudaStream_t stream) {
  return Launch("movmatrix", MovmatrixKernel, 32, 0, p, stream);
}
cudaError_t LaunchMmaBf16(const WrapperParams& p, cudaStream_t stream) {
  return Launch("mma_bf16", Mma<Product::kBf16>, 32, 0, p, stream);
}
cudaError_t LaunchMmaF16(const WrapperParams& p, cudaStream_t stream) {
  return Launch("mma_f16", Mma<Product::kF16>, 32, 0, p, stream);
}
cudaError_t LaunchMmaE4m3(const WrapperParams& p, cudaStream_t stream) {
  return Launch("mma_e4m3", Mma<Product::kE4m3>, 32, 0, p, stream);
}
cudaError_t LaunchWgmma(const WrapperParams& p, cudaStream_t stream) {
  return Launch("wgmma", Wgmma<false>, 128, 4 * kTileBytes, p, stream);
}
cudaError_t LaunchWgmmaBulk(const WrapperParams& p, cudaStream_t stream) {
  return Launch("wgmma_bulk", Wgmma<true>, 128, 4 * kTileBytes, p, stream);
}
cudaError_t LaunchWgmma128(const WrapperParams& p, cudaStream_t stream) {
  return Launch("wgmma_128", Wgmma128, 128, 3 * kTileBytes, p, stream);
}
cudaError_t LaunchWidenE4m3(const WrapperParams& p, cudaStream_t stream) {
  return Launch("widen_e4m3", Widen, 128, 0, p, stream, Blocks(p.n));
}
cudaError_t LaunchCpAsyncUpTo16(const WrapperParams& p, cudaStream_t stream) {
  return Launch("cp_async_up_to_16", CopyPart, 32, 512, p, stream);
}
cudaError_t LaunchExp2(const WrapperParams& p, cudaStream_t stream) {
  return Launch("exp2", Exp2, 128, 0, p, stream, Blocks(p.n));
}
cudaError_t LaunchPackBf16(const WrapperParams& p, cudaStream_t stream) {
  return Launch("pack_bf16", Pack, 128, 0, p, stream, Blocks(p.n));
}
cudaError_t LaunchMulBf16x2(const WrapperParams& p, cudaStream_t stream) {
  return Launch("mul_bf16x2", MulPairs, 128, 0, p, stream, Blocks(p.n));
}
cudaError_t LaunchIntegers(const WrapperParams& p, cudaStream_t stream) {
  return Launch("integers", Integers, 128, 0, p, stream, Blocks(p.n));
}
cudaError_t LaunchFloats(const WrapperParams& p, cudaStream_t stream) {
  return Launch("floats", Floats, 128, 0, p, stream, Blocks(p.n));
}
cudaError_t LaunchWarpFunctions(const WrapperParams& p, cudaStream_t stream) {
  return Launch("warp_functions", WarpFunctions, 32, 0, p, stream);
}
cudaError_t LaunchAtomics(const WrapperParams& p, cudaStream_t stream) {
  return Launch("atomics", Atomics, 64, 0, p, stream, 3);
}
cudaError_t LaunchSystemWords(const WrapperParams& p, cudaStream_t stream) {
  return Launch("system_words", SystemWords, 64, 0, p, stream);
}
cudaError_t LaunchNamedBarriers(const WrapperParams& p, cudaStream_t stream) {
  return Launch("named_barriers", NamedBarriers, 256, 0, p, stream);
}

}  // namespace lapidary
