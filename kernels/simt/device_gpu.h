// The wrappers of namespace gpu, one for one as kernels/gpu.h has them for nvcc; and Launch. Part
// of device.h.
#pragma once
#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/simt/async_copy.h"
#include "kernels/simt/barriers.h"
#include "kernels/simt/device_memory.h"
#include "kernels/simt/launch.h"
#include "kernels/simt/mbarrier.h"
#include "kernels/simt/spin.h"
#include "kernels/simt/tensor.h"
#include "kernels/simt/wgmma.h"

#define LAPIDARY_SIMT_SITE ::lapidary::simt::Site site = ::lapidary::simt::Site::Here()
#define LAPIDARY_SIMT_INLINE LAPIDARY_SIMT_INTERNAL inline

namespace lapidary::gpu {

template <class V>
LAPIDARY_SIMT_INLINED V Load(const void* p, LAPIDARY_SIMT_SITE) {
  V v;
  simt::LoadRequest(&v, p, site);
  return v;
}
template <class V>
LAPIDARY_SIMT_INLINE void Store(void* p, V v, LAPIDARY_SIMT_SITE) {
  simt::StoreRequest<V>(p, v, site);
}
LAPIDARY_SIMT_INLINED uint4 LoadOnce16(const void* p, LAPIDARY_SIMT_SITE) {
  return Load<uint4>(p, site);
}
LAPIDARY_SIMT_INLINE uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - simt::DynamicShared());
}

LAPIDARY_SIMT_INLINE void CpAsync16(void* dst, const void* src, bool take = true,
                                    LAPIDARY_SIMT_SITE) {
  simt::CopyAsync(dst, src, 16, take ? 16 : 0, site);
}
LAPIDARY_SIMT_INLINE void CpAsyncUpTo16(void* dst, const void* src, int bytes, LAPIDARY_SIMT_SITE) {
  simt::CopyAsync(dst, src, 16, static_cast<uint32_t>(bytes), site);
}
inline void CpAsyncCommit() { simt::CopyAsyncCommit(); }
template <int kPending>
inline void CpAsyncWait() {
  simt::CopyAsyncWait(kPending);
}

LAPIDARY_SIMT_INLINE void NamedBarrierSync(int id, int threads, LAPIDARY_SIMT_SITE) {
  simt::NamedBarrier(id, threads, true, site);
}
LAPIDARY_SIMT_INLINE void NamedBarrierArrive(int id, int threads, LAPIDARY_SIMT_SITE) {
  simt::NamedBarrier(id, threads, false, site);
}

struct Mbarrier {
  uint64_t state;
};
LAPIDARY_SIMT_INLINE void MbarrierInit(Mbarrier* bar, int arrivals, LAPIDARY_SIMT_SITE) {
  simt::MbarrierInit(bar, arrivals, site);
}
inline void FenceMbarrierInit() { simt::MbarrierInitFence(); }
LAPIDARY_SIMT_INLINE void MbarrierArrive(Mbarrier* bar, LAPIDARY_SIMT_SITE) {
  simt::MbarrierArrive(bar, 0, site);
}
LAPIDARY_SIMT_INLINE void MbarrierArriveExpect(Mbarrier* bar, uint32_t bytes, LAPIDARY_SIMT_SITE) {
  simt::MbarrierArrive(bar, bytes, site);
}
LAPIDARY_SIMT_INLINE void MbarrierWait(Mbarrier* bar, uint32_t parity, LAPIDARY_SIMT_SITE) {
  simt::MbarrierWait(bar, parity, site);
}
LAPIDARY_SIMT_INLINE void BulkCopyToShared(void* dst, const void* src, uint32_t bytes,
                                           Mbarrier* bar, LAPIDARY_SIMT_SITE) {
  simt::CopyBulk(dst, src, bytes, bar, site);
}

LAPIDARY_SIMT_INLINE void Ldmatrix4(uint32_t (&r)[4], const void* row, LAPIDARY_SIMT_SITE) {
  simt::LoadMatrices(r, 4, row, false, site);
}
LAPIDARY_SIMT_INLINE void Ldmatrix4Trans(uint32_t (&r)[4], const void* row, LAPIDARY_SIMT_SITE) {
  simt::LoadMatrices(r, 4, row, true, site);
}
LAPIDARY_SIMT_INLINE void Ldmatrix2(uint32_t (&r)[2], const void* row, LAPIDARY_SIMT_SITE) {
  simt::LoadMatrices(r, 2, row, false, site);
}
LAPIDARY_SIMT_INLINE uint32_t Movmatrix(uint32_t v, LAPIDARY_SIMT_SITE) {
  return simt::TransposeMatrix(v, site);
}
LAPIDARY_SIMT_INLINE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                  LAPIDARY_SIMT_SITE) {
  const uint32_t b[2] = {b0, b1};
  simt::MultiplyBf16(d, a, b, site);
}
LAPIDARY_SIMT_INLINE void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                 LAPIDARY_SIMT_SITE) {
  const uint32_t b[2] = {b0, b1};
  simt::MultiplyF16(d, a, b, site);
}
LAPIDARY_SIMT_INLINE void MmaE4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                  LAPIDARY_SIMT_SITE) {
  const uint32_t b[2] = {b0, b1};
  simt::MultiplyE4m3(d, a, b, site);
}

LAPIDARY_SIMT_INLINE uint64_t WgmmaDescriptor(const void* tile, uint32_t stride_bytes = 1024,
                                              LAPIDARY_SIMT_SITE) {
  return simt::MakeDescriptor(tile, stride_bytes, site);
}
inline void WgmmaFence() { simt::FenceProducts(); }
inline void WgmmaCommit() { simt::CommitProducts(); }
template <int kPending>
LAPIDARY_SIMT_INLINE void WgmmaWait(LAPIDARY_SIMT_SITE) {
  simt::WaitProducts(kPending, site);
}
LAPIDARY_SIMT_INLINE void FenceProxyAsync() {
  if (simt::monitor) simt::monitor->OnProxyFence();
}
LAPIDARY_SIMT_INLINE void WgmmaM64N64K16(float (&d)[32], uint64_t a, uint64_t b,
                                         LAPIDARY_SIMT_SITE) {
  simt::MultiplyWarpgroup(d, 32, a, b, site);
}
LAPIDARY_SIMT_INLINE void WgmmaM64N128K16(float (&d)[64], uint64_t a, uint64_t b,
                                          LAPIDARY_SIMT_SITE) {
  simt::MultiplyWarpgroup(d, 64, a, b, site);
}

inline void WidenE4m3(uint32_t codes, uint32_t* low, uint32_t* high) {
  *low = simt::E4m3ToF16(static_cast<uint8_t>(codes)) |
         uint32_t{simt::E4m3ToF16(static_cast<uint8_t>(codes >> 8))} << 16;
  *high = simt::E4m3ToF16(static_cast<uint8_t>(codes >> 16)) |
          uint32_t{simt::E4m3ToF16(static_cast<uint8_t>(codes >> 24))} << 16;
}

// Subnormal results become 0, as with .ftz; the last bits are the host's.
inline float Exp2Approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t r;
  memcpy(&r, &pair, sizeof r);  // NOLINT(bugprone-undefined-memory-manipulation): plain bits
  return r;
}
// Exact in fp32, then one rounding. Subnormals are the host's, kept.
inline uint32_t MulBf16x2(uint32_t a, uint32_t b) {
  const auto number = [](uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
  };
  return PackBf16(number(a << 16) * number(b << 16),
                  number(a & 0xffff0000u) * number(b & 0xffff0000u));
}
inline void SpinPause() { simt::SpinOnce(); }

LAPIDARY_SIMT_INLINE void StoreReleaseSystem(uint32_t* p, uint32_t v, LAPIDARY_SIMT_SITE) {
  simt::NoteAccess(p, sizeof v, simt::Access::kAtomic, site);
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
LAPIDARY_SIMT_INLINE uint32_t LoadAcquireSystem(const uint32_t* p, LAPIDARY_SIMT_SITE) {
  simt::NoteAccess(p, sizeof *p, simt::Access::kVolatileRead, site);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void PeerPause() { simt::PauseForPeers(); }
inline uint64_t Nanoseconds() { return simt::HostNanoseconds(); }

struct LaunchConfig {
  const char* name = "";  // of the operation, for messages and counts
  dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic
  cudaStream_t stream = nullptr;
};
// One kernel and its arguments, copied as a launch copies them.
template <class... P>
struct KernelCall {
  void (*kernel)(P...);
  std::tuple<std::remove_const_t<P>...> arguments;

  LAPIDARY_SIMT_INTERNAL static void Run(const void* call) {
    const auto* self = static_cast<const KernelCall*>(call);
    std::apply(self->kernel, self->arguments);
  }
};
template <class... P, class... A>
cudaError_t Launch(void (*kernel)(P...), const LaunchConfig& config, A&&... arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (config.shared_bytes > 48 * 1024) {
    const cudaError_t allowed =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(config.shared_bytes));
    if (allowed != cudaSuccess) return allowed;
  }
  using Call = KernelCall<P...>;
  auto call = std::make_shared<Call>(Call{kernel, {static_cast<P>(std::forward<A>(arguments))...}});
  return simt::EnqueueKernel(function,
                             {.name = config.name,
                              .blocks = config.grid,
                              .threads = config.block,
                              .dynamic_bytes = config.shared_bytes},
                             config.stream, {&Call::Run, std::move(call), sizeof(Call)});
}

}  // namespace lapidary::gpu

#undef LAPIDARY_SIMT_INLINE
#undef LAPIDARY_SIMT_SITE
