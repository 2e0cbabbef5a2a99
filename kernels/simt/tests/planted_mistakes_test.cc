// One kernel per class of mistake with barriers, warps and addresses: each must be found, in every
// order. What only the checker sees is expected of the checked flavour alone.
#include <gtest/gtest.h>

#include "kernels/simt/tests/planted.h"

namespace lapidary::simt {
namespace {

using testing::Contains;
using testing::HasSubstr;

constexpr unsigned kAll = 0xffffffffu;

// -- Barriers and warps.

__global__ void DivergentBarrier(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[0] = 1;
    __syncthreads();
  }
}
TEST(PlantedMistakes, DivergentBarrier) {
  Buffer<int> out(1);
  Finds("divergent __syncthreads", {1, 64}, DivergentBarrier, out.data());
}

__global__ void MissedBarrier(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = 1;
}
TEST(PlantedMistakes, BarrierThatSomeThreadsMiss) {
  Buffer<int> out(32);
  InEveryOrder([&](const std::string& order) {
    const auto failures = Failures({1, 32}, MissedBarrier, out.data());
    ASSERT_THAT(failures, Contains(HasSubstr("deadlock"))) << order;
    EXPECT_THAT(failures[0], HasSubstr("barrier 0: 16 of 32 threads")) << order;
    EXPECT_THAT(failures[0], HasSubstr("warp 0: lanes ffff0000 wait")) << order;
  });
}

__global__ void WrongBarrierCount() {
  if (threadIdx.x < 32) {
    gpu::NamedBarrierSync(1, 64);
  } else {
    gpu::NamedBarrierSync(1, 96);
  }
}
TEST(PlantedMistakes, NamedBarrierCountsDiffer) { Finds("a count of", {1, 96}, WrongBarrierCount); }

__global__ void BarrierOfPartialWarps() { gpu::NamedBarrierSync(1, 48); }
TEST(PlantedMistakes, NamedBarrierOfNoWholeWarps) {
  Finds("a barrier among 48 threads", {1, 64}, BarrierOfPartialWarps);
}

__global__ void TooFewArrivals() {
  if (threadIdx.x < 32) gpu::NamedBarrierSync(2, 64);
}
TEST(PlantedMistakes, NamedBarrierThatNobodyElseReaches) {
  Finds("barrier 2: 32 of 64 threads", {1, 64}, TooFewArrivals);
}

__global__ void ReadsExitedLane(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_sync(kAll, static_cast<int>(threadIdx.x), 3);
}
TEST(PlantedMistakes, ShuffleReadsALaneThatHasExited) {
  Buffer<int> out(32);
  Finds("shuffle: lane", {1, 32}, ReadsExitedLane, out.data());
}

__global__ void ReadsOutsideMask(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_down_sync(0xff, static_cast<int>(threadIdx.x), 1);
}
TEST(PlantedMistakes, ShuffleReadsALaneOutsideTheMask) {
  Buffer<int> out(32);
  Finds("which takes no part", {1, 32}, ReadsOutsideMask, out.data());
}

__global__ void NotInOwnMask() {
  if (threadIdx.x < 8) __syncwarp(0xf);
}
TEST(PlantedMistakes, LaneIsNotInItsMask) { Finds("not in its own mask", {1, 32}, NotInOwnMask); }

__global__ void DifferentOperations(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __ballot_sync(kAll, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(kAll, 1, 1);
  }
}
TEST(PlantedMistakes, LanesMeetAtDifferentOperations) {
  Buffer<int> out(32);
  Finds("different operations", {1, 32}, DifferentOperations, out.data());
}

__global__ void DifferentMasks(int* out) {
  const unsigned mask = threadIdx.x < 8 ? 0xffffu : 0xff00u | 0xf0u;
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(mask, 1, 0);
}
TEST(PlantedMistakes, LanesNameDifferentMasks) {
  Buffer<int> out(32);
  Finds("mask", {1, 32}, DifferentMasks, out.data());
}

__global__ void MmaOfHalfAWarp(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {};
  if (threadIdx.x < 16) return;
  gpu::MmaBf16(d, a, 0, 0);
  out[threadIdx.x] = d[0];
}
TEST(PlantedMistakes, MatrixInstructionWithoutTheWholeWarp) {
  Buffer<float> out(32);
  InEveryOrder([&](const std::string& order) {
    EXPECT_FALSE(Failures({1, 32}, MmaOfHalfAWarp, out.data()).empty()) << order;
  });
}

__global__ void Spin(volatile int* flag) {
  while (*flag != 7) gpu::SpinPause();
}
TEST(PlantedMistakes, SpinsForEver) {
  Buffer<int> flag(1);
  flag.Fill(0);
  EXPECT_THAT(Failures({1, 32}, Spin, flag.data()), Contains(HasSubstr("livelock")));
}

__global__ void SpinOnAtomic(int* flag) {
  while (atomicAdd(flag, 0) != 7) {
  }
}
TEST(PlantedMistakes, SpinsOnAnAtomicForEver) {
  Buffer<int> flag(1);
  flag.Fill(0);
  EXPECT_THAT(Failures({1, 1}, SpinOnAtomic, flag.data()), Contains(HasSubstr("livelock")));
}

__global__ void Trap() { __trap(); }
TEST(PlantedMistakes, Trap) { Finds("__trap", {1, 1}, Trap); }

// -- Bounds, alignment, wrong memory.

__global__ void WritesBeyond(int* out, int n) { out[static_cast<int>(threadIdx.x) + n] = 1; }
TEST(PlantedMistakes, GlobalOutOfBounds) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  Finds("global memory out of bounds", {1, 32}, WritesBeyond, out.data(), 1);
}
__global__ void ReadsLastByte(const unsigned char* in, unsigned char* out) { out[0] = in[5]; }
TEST(PlantedMistakes, GlobalOutOfBoundsByOneByte) {
  ONLY_CHECKED();
  Buffer<unsigned char> in(5), out(1);
  in.Fill(0);
  Finds("global memory out of bounds: read of 1 bytes at 5 of 5", {1, 1}, ReadsLastByte, in.data(),
        out.data());
}
__global__ void Straddles(const float* in, float4* out) { out[0] = gpu::Load<float4>(in); }
TEST(PlantedMistakes, VectorAccessReachesBeyond) {
  ONLY_CHECKED();
  Buffer<float> in(3);
  Buffer<float4> out(1);
  in.Fill(0);
  Finds("global memory out of bounds: read of 16 bytes at 0 of 12", {1, 1}, Straddles, in.data(),
        out.data());
}
__global__ void HostPointer(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x]; }
TEST(PlantedMistakes, HostPointer) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  const int in[32] = {};
  Finds("no device memory", {1, 32}, HostPointer, +in, out.data());
}
__global__ void SharedBeyond(int* out) {
  GPU_DYN_SMEM(int, s);
  s[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = gpu::Load<int>(&s[threadIdx.x + 1]);
}
TEST(PlantedMistakes, SharedOutOfBoundsThroughAWrapper) {
  Buffer<int> out(32);
  Finds("bytes of shared memory", {1, 32, 128}, SharedBeyond, out.data());
}
__global__ void SharedBeyondPlain(int* out) {
  GPU_DYN_SMEM(int, s);
  s[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x + 1];
}
TEST(PlantedMistakes, SharedOutOfBounds) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  Finds("shared memory out of bounds", {1, 32, 128}, SharedBeyondPlain, out.data());
}
__global__ void Misaligned(const char* in, float4* out) {
  out[threadIdx.x] = gpu::Load<float4>(in + 4);
}
TEST(PlantedMistakes, Misaligned) {
  Buffer<char> in(64);
  Buffer<float4> out(1);
  in.Fill(0);
  Finds("misaligned", {1, 1}, Misaligned, in.data(), out.data());
}
__global__ void MisalignedWord(char* p, bool store) {
  auto* word = reinterpret_cast<uint32_t*>(p + 2);
  if (store) {
    gpu::StoreReleaseSystem(word, 1);
  } else if (gpu::LoadAcquireSystem(word) == 5) {
    p[0] = 1;
  }
}
__global__ void WordBeyond(uint32_t* words, bool store) {
  if (store) {
    gpu::StoreReleaseSystem(words + 4, 1);
  } else if (gpu::LoadAcquireSystem(words + 4) == 5) {
    words[0] = 1;
  }
}
TEST(PlantedMistakes, WordsOfSystemScope) {
  Buffer<char> bytes(64);
  bytes.Fill(0);
  for (const bool store : {true, false}) {
    Finds("misaligned", {1, 1}, MisalignedWord, bytes.data(), store);
  }
  ONLY_CHECKED();
  Buffer<uint32_t> words(4);
  words.Fill(0);
  for (const bool store : {true, false}) {
    Finds("global memory out of bounds", {1, 1}, WordBeyond, words.data(), store);
  }
}
__global__ void UnwrittenGlobal(const int* in, int* out) { out[0] = in[7]; }
TEST(PlantedMistakes, DeviceMemoryThatNobodyWrote) {
  ONLY_CHECKED();
  Buffer<int> in(8), out(1);
  Finds("device memory that nobody has written, at 28", {1, 1}, UnwrittenGlobal, in.data(),
        out.data());
}
__global__ void UnwrittenShared(int* out) {
  GPU_SHARED(s, int[64]);
  s[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x + 32];
}
TEST(PlantedMistakes, SharedMemoryThatNobodyWrote) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  Finds("shared memory that nobody has written", {1, 32}, UnwrittenShared, out.data());
}
__global__ void SharesLocal(int* out) {
  GPU_SHARED(where, int*);
  int own = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 5) where = &own;
  __syncthreads();
  out[threadIdx.x] = *where;
  __syncthreads();
}
TEST(PlantedMistakes, LocalMemoryOfAnotherThread) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  Finds("another thread's local memory", {1, 32}, SharesLocal, out.data());
}

}  // namespace
}  // namespace lapidary::simt
