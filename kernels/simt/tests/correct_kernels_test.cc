// Kernels that use each means of synchronisation as it should be: silent, and right, in every
// order. A false report is as bad as a missed one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/simt/report.h"
#include "kernels/simt/tests/run_kernel.h"

namespace lapidary::simt {
namespace {

using testing::IsEmpty;

constexpr unsigned kAll = 0xffffffffu;

// Runs in every order; `check` looks at the results.
template <class Check, class... P, class... A>
void IsSilent(Check check, const Shape& shape, void (*kernel)(P...), A... arguments) {
  InEveryOrder([&](const std::string& order) {
    SCOPED_TRACE(order);
    ASSERT_THAT(Failures(shape, kernel, arguments...), IsEmpty());
    check();
  });
}

// -- Block barriers.

__global__ void Reverse(int* x) {
  GPU_SHARED(s, int[1024]);
  for (int turn = 0; turn < 3; ++turn) {
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
  }
}
TEST(CorrectKernels, BlockBarrier) {
  for (unsigned threads : {1u, 31u, 32u, 33u, 64u, 480u, 1024u}) {
    Buffer<int> x(threads);
    IsSilent(
        [&] {
          EXPECT_EQ(x[0], static_cast<int>(threads) - 1);
          for (size_t i = 0; i < threads; ++i) x[i] = static_cast<int>(i);
        },
        {1, threads},
        +[](int* p) {
          p[threadIdx.x] = static_cast<int>(threadIdx.x);
          Reverse(p);
        },
        x.data());
  }
}

__global__ void SomeExitEarly(int* out, int stay) {
  GPU_SHARED(s, int[128]);
  s[threadIdx.x] = 1;
  if (static_cast<int>(threadIdx.x) >= stay) return;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < 128; ++i) sum += s[i];
  out[threadIdx.x] = sum;
}
TEST(CorrectKernels, ThreadsThatExitedCountAsArrived) {
  Buffer<int> out(128);
  for (int stay : {1, 32, 50, 128}) {
    IsSilent([&] { EXPECT_EQ(out[0], 128); }, {1, 128}, SomeExitEarly, out.data(), stay);
  }
}

__global__ void Votes(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(t % 3 == 0);
  const int any = __syncthreads_or(t == 77), all = __syncthreads_and(t < 96);
  out[t] = count * 100 + any * 10 + all;
}
TEST(CorrectKernels, BarriersThatCount) {
  Buffer<int> out(96);
  IsSilent([&] { EXPECT_EQ(out[95], 3211); }, {1, 96}, Votes, out.data());
}

// -- Named barriers: one warp produces, two consume, through two stages.

__global__ void NamedRing(const int* in, int* out, int rounds) {
  GPU_SHARED(stage, int[2][32]);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool producer = threadIdx.x < 32;
  int sum = 0;
  for (int i = 0; i < rounds; ++i) {
    const int full = 1 + i % 2, empty = 3 + i % 2;
    if (producer) {
      if (i >= 2) gpu::NamedBarrierSync(empty, 96);
      stage[i % 2][lane] = in[i * 32 + lane];
      __threadfence_block();
      gpu::NamedBarrierArrive(full, 96);
    } else {
      gpu::NamedBarrierSync(full, 96);
      sum += stage[i % 2][lane ^ 5];
      if (i + 2 < rounds) gpu::NamedBarrierArrive(empty, 96);
    }
  }
  if (!producer) out[threadIdx.x - 32] = sum;
}
TEST(CorrectKernels, NamedBarriers) {
  std::vector<int> values(7 * 32);
  std::iota(values.begin(), values.end(), 0);
  const Buffer<int> in(values), out(64);
  for (int rounds : {1, 2, 3, 7}) {
    IsSilent(
        [&] {
          int expected = 0;
          for (int i = 0; i < rounds; ++i) expected += i * 32 + (3 ^ 5);
          EXPECT_EQ(out[3], expected);
          EXPECT_EQ(out[35], expected);
        },
        {1, 96}, NamedRing, in.data(), out.data(), rounds);
  }
}

// Named barriers of two halves, then of all: halves go on alone.
__global__ void NamedHalves(int* out) {
  GPU_SHARED(s, int[256]);
  const int half = static_cast<int>(threadIdx.x / 128);
  for (int i = 0; i < 4; ++i) {
    s[threadIdx.x] = static_cast<int>(threadIdx.x) + i;
    gpu::NamedBarrierSync(1 + half, 128);
    const int got = s[threadIdx.x ^ 64];
    gpu::NamedBarrierSync(1 + half, 128);
    out[threadIdx.x] = got;
  }
  gpu::NamedBarrierSync(5, 256);
  out[threadIdx.x] += s[threadIdx.x ^ 128] - static_cast<int>(threadIdx.x ^ 128) - 3;
}
TEST(CorrectKernels, NamedBarriersOfHalves) {
  Buffer<int> out(256);
  IsSilent([&] { EXPECT_EQ(out[0], 67); }, {1, 256}, NamedHalves, out.data());
}

// -- Warps.

__global__ void WarpExchange(int* out) {
  GPU_DYN_SMEM(int, s);
  for (int i = 0; i < 5; ++i) {
    s[threadIdx.x] = static_cast<int>(threadIdx.x) * 10 + i;
    __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ (1 << i)];
    __syncwarp();
  }
}
TEST(CorrectKernels, Syncwarp) {
  Buffer<int> out(96);
  IsSilent([&] { EXPECT_EQ(out[90], 90 / 16 % 2 ? 744 : 1064); }, {1, 96, 384}, WarpExchange,
           out.data());
}

// Groups of 8 lanes work on their own; then pairs of groups.
__global__ void LaneGroups(int* out) {
  GPU_SHARED(s, int[32]);
  const unsigned lane = threadIdx.x;
  const unsigned group = 0xffu << lane / 8 * 8, pair = 0xffffu << lane / 16 * 16;
  int sum = 0;
  for (unsigned i = 0; i < lane / 8 + 1; ++i) {  // groups take different numbers of turns
    s[lane] = static_cast<int>(lane + i);
    __syncwarp(group);
    sum += s[lane ^ 7];
    sum += __shfl_xor_sync(group, 1, 3);
    __syncwarp(group);
  }
  __syncwarp(pair);
  sum += s[lane ^ 8];
  out[lane] = sum;
}
TEST(CorrectKernels, SyncwarpOfGroups) {
  Buffer<int> out(32);
  IsSilent([&] { EXPECT_EQ(out[0], 7 + 1 + 9); }, {1, 32}, LaneGroups, out.data());
}

__global__ void FullMaskAfterExit(int* out, int stay) {
  if (static_cast<int>(threadIdx.x) >= stay) return;
  out[threadIdx.x] = __shfl_sync(kAll, static_cast<int>(threadIdx.x) + 5, 0);
  out[threadIdx.x] += static_cast<int>(__ballot_sync(kAll, 1));
}
TEST(CorrectKernels, FullMaskMayNameExitedLanes) {
  Buffer<int> out(32);
  IsSilent([&] { EXPECT_EQ(out[2], 5 + 0x1f); }, {1, 32}, FullMaskAfterExit, out.data(), 5);
  IsSilent([&] { EXPECT_EQ(out[2], 5 + 0xffff); }, {1, 16}, FullMaskAfterExit, out.data(), 16);
}

__global__ void ActiveMask(unsigned* counter, int* out) {
  if (threadIdx.x % 3 == 0) {
    const unsigned mask = __activemask();
    const unsigned same = __match_any_sync(mask, 1);
    const int leader = __ffs(static_cast<int>(same)) - 1;
    unsigned base = 0;
    if (static_cast<int>(threadIdx.x % 32) == leader) {
      base = atomicAdd(counter, static_cast<unsigned>(__popc(same)));
    }
    base = __shfl_sync(mask, base, leader);
    out[base + static_cast<unsigned>(__popc(same & ((1u << threadIdx.x % 32) - 1)))] = 1;
  }
}
TEST(CorrectKernels, ActiveMaskAggregation) {
  Buffer<unsigned> counter(1);
  Buffer<int> out(22);
  InEveryOrder([&](const std::string& order) {
    counter.Fill(0);
    EXPECT_THAT(Failures({1, 64}, ActiveMask, counter.data(), out.data()), IsEmpty()) << order;
    EXPECT_EQ(counter[0], 22u) << order;
  });
}

// -- Atomics and fences.

__global__ void Histogram(const int* in, unsigned* bins, int n) {
  GPU_SHARED(own, unsigned[16]);
  if (threadIdx.x < 16) own[threadIdx.x] = 0;
  __syncthreads();
  const int stride = static_cast<int>(blockDim.x * gridDim.x);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += stride) {
    atomicAdd(&own[in[i]], 1u);
  }
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], own[threadIdx.x]);
}
TEST(CorrectKernels, AtomicsInBothMemories) {
  std::vector<int> values(1000);
  for (int i = 0; i < 1000; ++i) values[i] = i * i % 16;
  Buffer<int> in(values);
  Buffer<unsigned> bins(16);
  InEveryOrder([&](const std::string& order) {
    bins.Fill(0);
    EXPECT_THAT(Failures({3, 64}, Histogram, in.data(), bins.data(), 1000), IsEmpty()) << order;
    EXPECT_EQ(bins[0], 250u) << order;
    EXPECT_EQ(bins[1], 250u) << order;
  });
}

// The last block to finish sums what all blocks wrote.
__global__ void LastBlock(float* parts, unsigned* counter, float* out) {
  GPU_SHARED(last, bool);
  parts[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(threadIdx.x);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += parts[b * blockDim.x + threadIdx.x];
  out[threadIdx.x] = sum;
}
TEST(CorrectKernels, LastBlockReducesWithAFence) {
  Buffer<float> parts(6 * 64), out(64);
  Buffer<unsigned> counter(1);
  counter.Fill(0);
  IsSilent([&] { EXPECT_EQ(out[9], 54); }, {6, 64}, LastBlock, parts.data(), counter.data(),
           out.data());
}

__global__ void SpinOnFlag(volatile int* flag, int* out) {
  if (threadIdx.x == 40) *flag = 1;
  if (threadIdx.x == 3) {
    while (*flag == 0) gpu::SpinPause();
    out[0] = 5;
  }
}
TEST(CorrectKernels, SpinsUntilAnotherWarpSetsAFlag) {
  Buffer<int> flag(1), out(1);
  InEveryOrder([&](const std::string& order) {
    flag.Fill(0);
    EXPECT_THAT(Failures({1, 64}, SpinOnFlag, flag.data(), out.data()), IsEmpty()) << order;
    EXPECT_EQ(out[0], 5) << order;
  });
}

__global__ void SystemWord(uint32_t* word, uint32_t* out) {
  if (threadIdx.x == 40) gpu::StoreReleaseSystem(word, 9);
  if (threadIdx.x == 3) {
    while (gpu::LoadAcquireSystem(word) == 0) gpu::PeerPause();
    out[0] = gpu::LoadAcquireSystem(word);
  }
}
TEST(CorrectKernels, AWordOfSystemScope) {
  Buffer<uint32_t> word(1), out(1);
  InEveryOrder([&](const std::string& order) {
    word.Fill(0);
    EXPECT_THAT(Failures({1, 64}, SystemWord, word.data(), out.data()), IsEmpty()) << order;
    EXPECT_EQ(out[0], 9u) << order;
  });
}

// -- cp.async.

__global__ void CopyRing(const float4* in, float4* out, int rounds) {
  constexpr int kStages = 3;
  GPU_DYN_SMEM(float4, s);  // [kStages][blockDim]
  const int threads = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  auto fetch = [&](int i) {
    gpu::CpAsync16(&s[i % kStages * threads + t], &in[i * threads + t], i % 4 != 3);
  };
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < rounds) fetch(i);
    gpu::CpAsyncCommit();
  }
  for (int i = 0; i < rounds; ++i) {
    gpu::CpAsyncWait<kStages - 2>();
    __syncthreads();
    out[i * threads + t] = gpu::Load<float4>(&s[i % kStages * threads + (t ^ 33)]);
    if (i + kStages - 1 < rounds) fetch(i + kStages - 1);
    gpu::CpAsyncCommit();
  }
}
TEST(CorrectKernels, CopiesOfOthersAfterABarrier) {
  std::vector<float4> values(64 * 9);
  for (size_t i = 0; i < values.size(); ++i) values[i] = {static_cast<float>(i), 0, 0, 1};
  Buffer<float4> in(values), out(values.size());
  for (int rounds : {1, 2, 9}) {
    IsSilent(
        [&] {
          EXPECT_EQ(out[2].x, 35);
          EXPECT_EQ(out[(rounds - 1) * 64].x, static_cast<float>((rounds - 1) * 64 + 33));
          EXPECT_EQ(rounds > 3 ? out[3 * 64].w : 0, 0) << "not taken: zeros";
        },
        {1, 64, 3 * 64 * 16}, CopyRing, in.data(), out.data(), rounds);
  }
}

// -- mbarriers and bulk copies: a producer warp, two consumer warps, two stages.

__global__ void BulkRing(const float4* in, float4* out, int rounds) {
  constexpr int kStages = 2;
  GPU_DYN_SMEM(float4, s);  // [kStages][64]
  GPU_SHARED(full, gpu::Mbarrier[kStages]);
  GPU_SHARED(empty, gpu::Mbarrier[kStages]);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      gpu::MbarrierInit(&full[i], 1);
      gpu::MbarrierInit(&empty[i], 2);
    }
    gpu::FenceMbarrierInit();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < rounds; ++i) {
        const uint32_t turn = static_cast<uint32_t>(i / kStages);
        gpu::MbarrierWait(&empty[i % kStages], (turn & 1) ^ 1);
        gpu::MbarrierArriveExpect(&full[i % kStages], 1024);
        gpu::BulkCopyToShared(&s[i % kStages * 64], &in[i * 64], 512, &full[i % kStages]);
        gpu::BulkCopyToShared(&s[i % kStages * 64 + 32], &in[i * 64 + 32], 512, &full[i % kStages]);
      }
    }
    return;
  }
  const int t = static_cast<int>(threadIdx.x) - 32;
  for (int i = 0; i < rounds; ++i) {
    const uint32_t turn = static_cast<uint32_t>(i / kStages);
    gpu::MbarrierWait(&full[i % kStages], turn & 1);
    out[i * 64 + t] = gpu::Load<float4>(&s[i % kStages * 64 + (63 - t)]);
    __syncwarp();
    if (t % 32 == 0) gpu::MbarrierArrive(&empty[i % kStages]);
  }
}
TEST(CorrectKernels, BulkCopiesThroughAPipeline) {
  std::vector<float4> values(64 * 7);
  for (size_t i = 0; i < values.size(); ++i) values[i] = {static_cast<float>(i), 0, 0, 1};
  Buffer<float4> in(values), out(values.size());
  for (int rounds : {1, 2, 3, 7}) {
    IsSilent(
        [&] {
          for (int i = 0; i < rounds; ++i) EXPECT_EQ(out[i * 64 + 1].x, i * 64 + 62) << i;
        },
        {1, 96, 2 * 64 * 16}, BulkRing, in.data(), out.data(), rounds);
  }
}

// Without bytes, an mbarrier is a barrier: thread t waits for thread t - 1.
__global__ void Chain(int* x) {
  GPU_SHARED(bars, gpu::Mbarrier[32]);
  GPU_SHARED(v, int);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 32; ++i) gpu::MbarrierInit(&bars[i], 1);
    v = 0;
  }
  __syncthreads();
  if (threadIdx.x > 0) gpu::MbarrierWait(&bars[threadIdx.x - 1], 0);
  v = v * 3 + static_cast<int>(threadIdx.x);
  gpu::MbarrierArrive(&bars[threadIdx.x]);
  if (threadIdx.x == blockDim.x - 1) *x = v;
}
TEST(CorrectKernels, MbarriersOrderThreads) {
  Buffer<int> x(1);
  int expected = 0;
  for (int i = 0; i < 20; ++i) expected = expected * 3 + i;
  IsSilent([&] { EXPECT_EQ(x[0], expected); }, {1, 20}, Chain, x.data());
}

}  // namespace
}  // namespace lapidary::simt
