// One kernel per kind of race. Only the checker sees them.
#include <gtest/gtest.h>

#include "kernels/simt/tests/planted.h"

namespace lapidary::simt {
namespace {

using testing::Contains;
using testing::HasSubstr;

constexpr unsigned kAll = 0xffffffffu;

__global__ void WarpRace(int* out) {
  GPU_SHARED(s, int[32]);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}
TEST(PlantedRaces, SyncwarpIsMissing) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  Finds("race: ", {1, 32}, WarpRace, out.data());
}
__global__ void WarpSyncAcrossWarps(int* out) {
  GPU_SHARED(s, int[64]);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 32];
}
TEST(PlantedRaces, SyncwarpWhereABarrierIsNeeded) {
  ONLY_CHECKED();
  Buffer<int> out(64);
  Finds("race: ", {1, 64}, WarpSyncAcrossWarps, out.data());
}
__global__ void HalfWarpSync(int* out) {
  GPU_SHARED(s, int[32]);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncwarp(threadIdx.x < 16 ? 0xffff : 0xffff0000);
  out[threadIdx.x] = s[threadIdx.x ^ 16];
}
TEST(PlantedRaces, SyncwarpOfTooFewLanes) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  Finds("race: ", {1, 32}, HalfWarpSync, out.data());
}
__global__ void OverwriteRace(int* out) {
  GPU_SHARED(s, int);
  for (int i = 0; i < 3; ++i) {
    if (threadIdx.x == 0) s = i;
    __syncthreads();
    out[threadIdx.x] = s;
  }
}
TEST(PlantedRaces, BarrierAfterReadingIsMissing) {
  ONLY_CHECKED();
  Buffer<int> out(64);
  Finds("race: write while another thread may still read", {1, 64}, OverwriteRace, out.data());
}
__global__ void SameWord() {
  GPU_SHARED(s, int);
  s = static_cast<int>(threadIdx.x);
}
TEST(PlantedRaces, TwoThreadsWriteOneWord) {
  ONLY_CHECKED();
  Finds("race: write over another thread's write", {1, 2}, SameWord);
}
__global__ void ShuffleIsNoFence(int* out) {
  GPU_SHARED(s, int[32]);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  const int other = __shfl_xor_sync(kAll, static_cast<int>(threadIdx.x), 1);
  out[threadIdx.x] = s[other];
}
TEST(PlantedRaces, ShuffleOrdersNothing) {
  ONLY_CHECKED();
  Buffer<int> out(32);
  Finds("race: ", {1, 32}, ShuffleIsNoFence, out.data());
}
__global__ void NamedBarrierOfOthers(int* out) {
  GPU_SHARED(s, int[96]);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (threadIdx.x < 64) {
    gpu::NamedBarrierSync(1, 64);
    out[threadIdx.x] = s[threadIdx.x + 32];  // warp 2 took no part
  }
}
TEST(PlantedRaces, NamedBarrierWithoutTheWriter) {
  ONLY_CHECKED();
  Buffer<int> out(96);
  Finds("race: ", {1, 96}, NamedBarrierOfOthers, out.data());
}
__global__ void ArriverReads(int* out) {
  GPU_SHARED(s, int[64]);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (threadIdx.x < 32) {
    gpu::NamedBarrierArrive(1, 64);  // does not wait
  } else {
    gpu::NamedBarrierSync(1, 64);
  }
  out[threadIdx.x] = s[threadIdx.x ^ 32];
}
TEST(PlantedRaces, ArrivingIsNotWaiting) {
  ONLY_CHECKED();
  Buffer<int> out(64);
  Finds("race: ", {1, 64}, ArriverReads, out.data());
}
__global__ void GlobalRace(int* x, int* out) {
  x[threadIdx.x] = 1;
  out[threadIdx.x] = x[threadIdx.x ^ 1];
}
TEST(PlantedRaces, RaceInGlobalMemoryInsideABlock) {
  ONLY_CHECKED();
  Buffer<int> x(32), out(32);
  x.Fill(0);
  Finds("global memory at", {1, 32}, GlobalRace, x.data(), out.data());
}
__global__ void BlocksWriteOneWord(int* out) { out[0] = static_cast<int>(blockIdx.x); }
TEST(PlantedRaces, BlocksWriteOneWord) {
  ONLY_CHECKED();
  Buffer<int> out(1);
  Finds("race: write to what another block writes", {4, 1}, BlocksWriteOneWord, out.data());
}
__global__ void BlocksReadAndWrite(int* x, int* out) {
  out[blockIdx.x] = x[0];
  if (blockIdx.x == 2) x[0] = 1;
}
TEST(PlantedRaces, ABlockReadsWhatAnotherWrites) {
  ONLY_CHECKED();
  Buffer<int> x(1), out(4);
  x.Fill(0);
  Finds("another block", {4, 1}, BlocksReadAndWrite, x.data(), out.data());
}
__global__ void AtomicAgainstPlain(int* x) {
  if (threadIdx.x == 0) {
    x[0] = 1;
  } else {
    atomicAdd(x, 1);
  }
}
TEST(PlantedRaces, AtomicMeetsAPlainWrite) {
  ONLY_CHECKED();
  Buffer<int> x(1);
  x.Fill(0);
  Finds("race: ", {1, 32}, AtomicAgainstPlain, x.data());
}
// The last block sums what all wrote; without the fence their writes may not be there yet.
__global__ void LastBlockWithoutFence(int* parts, unsigned* counter, int* out) {
  parts[blockIdx.x] = 1;
  if (atomicInc(counter, gridDim.x - 1) != gridDim.x - 1) return;
  int sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += parts[b];
  out[0] = sum;
}
TEST(PlantedRaces, LastBlockReadsWithoutAFence) {
  ONLY_CHECKED();
  Buffer<int> parts(4), out(1);
  Buffer<unsigned> counter(1);
  counter.Fill(0);
  InEveryOrder([&](const std::string& order) {
    counter.Fill(0);
    EXPECT_THAT(Failures({4, 1}, LastBlockWithoutFence, parts.data(), counter.data(), out.data()),
                Contains(HasSubstr("read of what another block writes")))
        << order;
  });
}

}  // namespace
}  // namespace lapidary::simt
