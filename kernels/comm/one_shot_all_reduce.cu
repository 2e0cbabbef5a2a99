// Each rank writes its message into memory of its own that all can read, tells each of the others,
// waits until all have told it, and adds up what lies in all the mailboxes. A rank reads size - 1
// messages over its links, size / 2 times what a ring moves; but there is one wait instead of
// 2 (size - 1), and small messages are made of waits.
//
// A block deals with its own part of a message, and with nobody but the same block of other ranks,
// so that no block waits for another of its own device. Messages of even and odd epochs lie apart:
// who writes epoch e + 2 has heard in e + 1 from every rank, and a rank says e + 1 after its kernel
// of e, with all its reading, has ended. So no rank waits for others to have read.
#include <algorithm>

#include "kernels/comm/one_shot_all_reduce_cuda.h"
#include "kernels/gpu.h"

namespace lapidary {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 16;            // bytes that a thread moves at once
constexpr unsigned kPeekEvery = 64;  // looks at a word, per look at the clock and at host memory

// Waits until the block of rank `peer` has written its message of `epoch` down. False: given up.
GPU_DEVICE bool AwaitPeer(const OneShotParams& p, int peer, uint32_t epoch) {
  const uint32_t* const written = &p.mailbox[p.rank]->written[blockIdx.x][peer];
  const uint64_t begin = gpu::Nanoseconds();
  // Counters wrap around: they are never 2^31 apart.
  for (unsigned looks = 1; static_cast<int32_t>(gpu::LoadAcquireSystem(written) - epoch) < 0;
       ++looks) {
    gpu::PeerPause();
    if (looks % kPeekEvery != 0) continue;
    if (gpu::LoadAcquireSystem(&p.control->stop) != 0) return false;
    if (gpu::Nanoseconds() - begin < p.patience_ns) continue;
    gpu::StoreReleaseSystem(&p.control->silent, static_cast<uint32_t>(peer) + 1);
    gpu::StoreReleaseSystem(&p.control->stop, 1);  // for the sums behind this one
    return false;
  }
  return true;
}

template <bool kBf16>
GPU_DEVICE uint4 SumUnit(const OneShotParams& p, int64_t offset) {
  uint4 unit[kOneShotRanks] = {};
#pragma unroll
  for (int r = 0; r < kOneShotRanks; ++r) {
    if (r < p.size) {
      unit[r] = gpu::Load<uint4>(reinterpret_cast<const uint8_t*>(p.mailbox[r]) + offset);
    }
  }
  float sum[kBf16 ? 8 : 4] = {};
#pragma unroll
  for (int r = 0; r < kOneShotRanks; ++r) {
    if (r >= p.size) continue;
    const uint32_t words[4] = {unit[r].x, unit[r].y, unit[r].z, unit[r].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kBf16) {
        sum[2 * i] += gpu::Bf16Low(words[i]);
        sum[2 * i + 1] += gpu::Bf16High(words[i]);
      } else {
        sum[i] += __uint_as_float(words[i]);
      }
    }
  }
  if constexpr (kBf16) {
    return {gpu::PackBf16(sum[0], sum[1]), gpu::PackBf16(sum[2], sum[3]),
            gpu::PackBf16(sum[4], sum[5]), gpu::PackBf16(sum[6], sum[7])};
  } else {
    return {__float_as_uint(sum[0]), __float_as_uint(sum[1]), __float_as_uint(sum[2]),
            __float_as_uint(sum[3])};
  }
}

template <bool kBf16>
__global__ void __launch_bounds__(kThreads)
    OneShotKernel(const __grid_constant__ OneShotParams p, int units) {
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int per_block = (units + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int first = block * per_block;
  const int own = min(per_block, units - first);
  uint8_t* const data = static_cast<uint8_t*>(p.data) + int64_t{first} * kUnit;
  OneShotMailbox* const mailbox = p.mailbox[p.rank];
  const uint32_t epoch = mailbox->epoch[block] + 1;
  uint8_t* const message = mailbox->message[epoch % 2][block];
  for (int i = thread; i < own; i += kThreads) {
    gpu::Store(message + i * kUnit, gpu::Load<uint4>(data + i * kUnit));
  }
  __syncthreads();  // the release below is for what all threads have written
  bool answered = true;
  if (thread < p.size && thread != p.rank) {
    gpu::StoreReleaseSystem(&p.mailbox[thread]->written[block][p.rank], epoch);
    answered = AwaitPeer(p, thread, epoch);
  }
  if (__syncthreads_or(!answered)) return;
  const int64_t offset = message - reinterpret_cast<uint8_t*>(mailbox);
  for (int i = thread; i < own; i += kThreads) {
    gpu::Store(data + i * kUnit, SumUnit<kBf16>(p, offset + i * kUnit));
  }
  if (thread == 0) mailbox->epoch[block] = epoch;
}

}  // namespace

cudaError_t LaunchOneShotAllReduce(const OneShotParams& p, cudaStream_t stream) {
  const int64_t bytes = p.count * (p.bf16 ? 2 : 4);
  if (p.count < 0 || p.size < 1 || p.size > kOneShotRanks || p.rank < 0 || p.rank >= p.size ||
      !OneShotTakes(bytes) || reinterpret_cast<uintptr_t>(p.data) % kUnit != 0) {
    return cudaErrorInvalidValue;
  }
  const int units = static_cast<int>(bytes / kUnit);
  gpu::LaunchConfig config;
  config.name = "one_shot_all_reduce";
  // The same blocks on all ranks, so few that a device runs them all at once.
  config.grid = dim3(std::min((units + kThreads - 1) / kThreads, kOneShotBlocks));
  config.block = dim3(kThreads);
  config.stream = stream;
  return gpu::Launch(p.bf16 ? OneShotKernel<true> : OneShotKernel<false>, config, p, units);
}

}  // namespace lapidary
