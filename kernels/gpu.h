// The one header of device code. The same source is compiled
//   (a) by nvcc, for a GPU, and
//   (b) by a host compiler as C++ (-x c++), for the SIMT executor in kernels/simt.
//
// Device code is plain CUDA plus the wrappers below; PTX stands in this file alone, because nothing
// but a GPU can run it: keep each wrapper a single instruction whose model in kernels/simt says the
// same. What kernel sources must not use: `__shared__` (GPU_SHARED, GPU_DYN_SMEM), `<<<>>>`
// (gpu::Launch), device lambdas, cooperative groups, CUB.
//
// Vector accesses go through gpu::Load and gpu::Store, so that the executor sees one request of
// their size, as the GPU does.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace lapidary::gpu {
template <class T>
struct TypeId {
  using Type = T;
};
template <class T>
using TypeOf = typename TypeId<T>::Type;
}  // namespace lapidary::gpu

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#define GPU_DEVICE __device__ __forceinline__
#define GPU_HOST_DEVICE __host__ __device__ __forceinline__
// T* name: the block's dynamic shared memory, aligned to 1024.
#define GPU_DYN_SMEM(T, name)                                           \
  extern __shared__ __align__(1024) unsigned char gpu_dyn_smem_bytes[]; \
  T* name = reinterpret_cast<T*>(gpu_dyn_smem_bytes)
// Static shared memory: GPU_SHARED(sums, float[4][32]);
#define GPU_SHARED(name, ...) __shared__ ::lapidary::gpu::TypeOf<__VA_ARGS__> name

// What the chip being compiled for has. A kernel that needs more has an empty body there, and the
// launcher, which knows the chip, never starts it.
#if defined(__CUDA_ARCH__)
#define GPU_HAS_E4M3 (__CUDA_ARCH__ >= 890)       // mma and conversions
#define GPU_HAS_BULK_COPY (__CUDA_ARCH__ >= 900)  // mbarrier transactions, cp.async.bulk
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GPU_HAS_WGMMA 1
#else
#define GPU_HAS_WGMMA 0
#endif
#else
#define GPU_HAS_E4M3 1
#define GPU_HAS_BULK_COPY 1
#define GPU_HAS_WGMMA 1
#endif

namespace lapidary::gpu {

// -- Memory.

// One access of sizeof(V) bytes (16 at most), aligned to its size.
template <class V>
GPU_DEVICE V Load(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
GPU_DEVICE void Store(void* p, V v) {
  *static_cast<V*>(p) = v;
}
// 16 bytes of global memory that nobody writes during the kernel and that are read once.
GPU_DEVICE uint4 LoadOnce16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Address in the shared window, as instructions take it.
GPU_DEVICE uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// -- Asynchronous copies of single chunks (sm_80).

// 16 bytes global to shared, both aligned; zeros when !take (src is not read then).
GPU_DEVICE void CpAsync16(void* dst, const void* src, bool take = true) {
  const int bytes = take ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(dst)), "l"(src),
               "r"(bytes)
               : "memory");
}
// The same for the first `bytes` (0 to 16) of src: no more is read, the rest of dst becomes zeros.
GPU_DEVICE void CpAsyncUpTo16(void* dst, const void* src, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(dst)), "l"(src),
               "r"(bytes)
               : "memory");
}
GPU_DEVICE void CpAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups are on their way. Others see the data after
// a barrier.
template <int kPending>
GPU_DEVICE void CpAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// -- Barriers.

// Named barrier `id` (1 to 15; 0 is __syncthreads) among `threads` threads, a multiple of 32.
GPU_DEVICE void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Counts as arrived without waiting.
GPU_DEVICE void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// An mbarrier: 8 bytes of shared memory, touched by the functions below alone.
struct Mbarrier {
  uint64_t state;
};
#if GPU_HAS_BULK_COPY
// A phase completes after `arrivals` arrivals and all bytes expected. One thread, then
// FenceMbarrierInit() and a block barrier before anybody uses it.
GPU_DEVICE void MbarrierInit(Mbarrier* bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(bar)), "r"(arrivals)
               : "memory");
}
GPU_DEVICE void FenceMbarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
GPU_DEVICE void MbarrierArrive(Mbarrier* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(bar)) : "memory");
}
// Arrives, and the phase waits for so many bytes of bulk copies as well.
GPU_DEVICE void MbarrierArriveExpect(Mbarrier* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(bar)),
               "r"(bytes)
               : "memory");
}
// Waits until the phase with this parity (0 for the first, 1 for the next ...) has completed.
GPU_DEVICE void MbarrierWait(Mbarrier* bar, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(SharedAddress(bar)),
      "r"(parity)
      : "memory");
}
// `bytes` (a multiple of 16) from global to shared memory, both aligned to 16; done when the
// barrier's phase is. One thread issues it.
GPU_DEVICE void BulkCopyToShared(void* dst, const void* src, uint32_t bytes, Mbarrier* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(dst)),
      "l"(src), "r"(bytes), "r"(SharedAddress(bar))
      : "memory");
}
// Ordinary writes to shared memory of this thread become visible to wgmma and bulk copies.
GPU_DEVICE void FenceProxyAsync() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

// -- Tensor cores, per warp. Fragments as PTX numbers them: lane = 4 g + t.

// Four 8 x 8 matrices of 16-bit elements: lanes 8 i to 8 i + 7 give the rows (16 bytes each) of
// matrix i; r[i] holds row g, elements 2 t and 2 t + 1. Trans: column g, elements 2 t and 2 t + 1.
GPU_DEVICE void Ldmatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
GPU_DEVICE void Ldmatrix4Trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
// The same for two matrices (lanes 0 to 15).
GPU_DEVICE void Ldmatrix2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(SharedAddress(row))
               : "memory");
}
// Transposes an 8 x 8 matrix of 16-bit elements held as Ldmatrix would give it.
GPU_DEVICE uint32_t Movmatrix(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
// d [16, 8] += a [16, 16] * b [16, 8], bf16, fp32 sums. a: rows g, g + 8 x k 2 t.., then k + 8;
// b: k 2 t.., then k + 8, column g; d: row g columns 2 t.., then row g + 8.
GPU_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same with fp16 operands.
GPU_DEVICE void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#if GPU_HAS_E4M3
// d [16, 8] += a [16, 32] * b [32, 8], e4m3, fp32 sums: as above with 4 elements a register (k 4
// t.., k + 16).
GPU_DEVICE void MmaE4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// -- Hopper's warpgroup products (sm_90a): 128 threads, operands in shared memory, K-major rows of
// 128 bytes with the 128-byte swizzle (16-byte chunk c of row r at c ^ (r % 8)), tiles aligned to
// 1024 bytes.
#if GPU_HAS_WGMMA
// `stride_bytes` from 8 rows to the next 8.
GPU_DEVICE uint64_t WgmmaDescriptor(const void* tile, uint32_t stride_bytes = 1024) {
  return uint64_t{(SharedAddress(tile) & 0x3ffffu) >> 4} | uint64_t{1} << 16 |
         uint64_t{stride_bytes >> 4} << 32 | uint64_t{1} << 62;
}
GPU_DEVICE void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
GPU_DEVICE void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
GPU_DEVICE void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// d [64, 64] += a [64, 16] * b [64, 16]^T, bf16. Warp w of the group holds rows 16 w + g and + 8:
// d[4 i + j] is column 8 i + 2 t + j % 2 of row g + 8 (j / 2).
GPU_DEVICE void WgmmaM64N64K16(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b));
}
// The same for [64, 128] += [64, 16] * [128, 16]^T.
GPU_DEVICE void WgmmaM64N128K16(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, 1, 1, 1, "
      "0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b));
}
#endif

// -- Arithmetic.

// Four e4m3 codes as fp16 without an instruction for it: sign, exponent and mantissa moved to their
// places give 2^-8 of the value, subnormal ones included; one exact multiplication mends that.
GPU_DEVICE void WidenE4m3ByBits(uint32_t codes, uint32_t* low, uint32_t* high) {
  const auto widen = [](uint32_t v) {  // codes in the high bytes of both halves
    const uint32_t bits = (v & 0x80008000u) | ((v >> 1) & 0x3f803f80u);
    __half2 pair;
    memcpy(&pair, &bits, 4);
    pair = __hmul2(pair, __float2half2_rn(256.0f));
    uint32_t r;
    memcpy(&r, &pair, 4);
    return r;
  };
  *low = widen(__byte_perm(codes, 0, 0x1404));
  *high = widen(__byte_perm(codes, 0, 0x3424));
}
// Four e4m3 codes as fp16, exactly: codes 0 and 1 in `low`, 2 and 3 in `high`. A NaN stays one
// where the chip converts by itself (sm_89); sm_80 takes it for 480.
GPU_DEVICE void WidenE4m3(uint32_t codes, uint32_t* low, uint32_t* high) {
#if GPU_HAS_E4M3
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(*low) : "h"(static_cast<uint16_t>(codes)));
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(*high) : "h"(static_cast<uint16_t>(codes >> 16)));
#else
  WidenE4m3ByBits(codes, low, high);
#endif
}
// 2^x, relative error about 2^-22; subnormal results become 0.
GPU_DEVICE float Exp2Approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Two bf16 in a register, `low` in the low half; nearest even.
GPU_DEVICE uint32_t PackBf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// a * b of two bf16 in a register each; nearest even, subnormals kept.
GPU_DEVICE uint32_t MulBf16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u));
  return r;
}
// Lets a spinning thread's neighbours run.
GPU_DEVICE void SpinPause() { __nanosleep(64); }

// -- Words that several devices share, in peer memory or in mapped host memory.

// Who acquires v from *p sees what this thread had written, or seen written, before.
GPU_DEVICE void StoreReleaseSystem(uint32_t* p, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
GPU_DEVICE uint32_t LoadAcquireSystem(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
// Between two looks at such a word. The executor does not count it as a livelock: the kernel itself
// must give up in the end.
GPU_DEVICE void PeerPause() { __nanosleep(32); }
// A clock of the whole device; it moves in steps of a microsecond or so.
GPU_DEVICE uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// -- Launching.

struct LaunchConfig {
  const char* name = "";  // of the operation, for messages and counts
  dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic
  cudaStream_t stream = nullptr;
};
// Starts a kernel; arguments are copied. The launch's error, or that of allowing so much shared
// memory.
template <class... P, class... A>
cudaError_t Launch(void (*kernel)(P...), const LaunchConfig& config, A&&... arguments) {
  if (config.shared_bytes > 48 * 1024) {
    const cudaError_t allowed = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(config.shared_bytes));
    if (allowed != cudaSuccess) return allowed;
  }
  cudaLaunchConfig_t c{};
  c.gridDim = config.grid;
  c.blockDim = config.block;
  c.dynamicSmemBytes = config.shared_bytes;
  c.stream = config.stream;
  return cudaLaunchKernelEx(&c, kernel, static_cast<P>(std::forward<A>(arguments))...);
}

}  // namespace lapidary::gpu

#else

#define GPU_HAS_E4M3 1
#define GPU_HAS_BULK_COPY 1
#define GPU_HAS_WGMMA 1
#include "kernels/simt/device.h"

#endif

namespace lapidary::gpu {

GPU_HOST_DEVICE float Bf16Low(uint32_t pair) {
  const uint32_t bits = pair << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
GPU_HOST_DEVICE float Bf16High(uint32_t pair) {
  const uint32_t bits = pair & 0xffff0000u;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

// The sum over the 32 lanes, the same bits in each (a butterfly).
GPU_DEVICE float WarpSum(float v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
GPU_DEVICE float WarpMax(float v) {
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}

}  // namespace lapidary::gpu
