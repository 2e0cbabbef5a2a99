// Slots of (token, place) pairs in the order of experts, tokens ascending within one: without
// atomic operations and without a workspace, so every run gives the same slots.
//
// A block per expert reads all choices twice (4 bytes a pair, from the L2 cache): first it counts
// the pairs of lower experts, which is where its slots begin, and its own, per warp; then it
// numbers its own. Warps have consecutive shares, so a pair's number is what lower warps count plus
// what stands before it in its own. 16,384 tokens x 8: 512 KiB twice per block; the limit is the
// latency of those loads. A decode step has a few hundred pairs: one round.
#include "kernels/gpu.h"
#include "kernels/moe/moe_cuda.h"

namespace lapidary {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int kMaxTopK = 16;

__global__ void __launch_bounds__(kThreads)
    ExpertSortKernel(const __grid_constant__ ExpertSortParams p) {
  GPU_SHARED(lower_of, int[kWarps]);  // pairs of lower experts in a warp's share
  GPU_SHARED(equal_of, int[kWarps]);  // and of this block's
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int expert = static_cast<int>(blockIdx.x);  // counted from first_expert
  const int pairs = static_cast<int>(p.tokens) * p.top_k;
  const int share = (pairs + kThreads - 1) / kThreads * 32;
  const int begin = warp * share < pairs ? warp * share : pairs;
  const int end = begin + share < pairs ? begin + share : pairs;

  int lower = 0, equal = 0;
#pragma unroll 4
  for (int i = begin + lane; i < end; i += 32) {
    const int e = p.chosen[i] - p.first_expert;
    lower += e >= 0 && e < expert ? 1 : 0;
    equal += e == expert ? 1 : 0;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    lower += __shfl_xor_sync(0xffffffffu, lower, d);
    equal += __shfl_xor_sync(0xffffffffu, equal, d);
  }
  if (lane == 0) lower_of[warp] = lower, equal_of[warp] = equal;
  __syncthreads();
  int slot = 0, own = 0;  // first slot of the warp's share; pairs of the expert
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    slot += lower_of[w] + (w < warp ? equal_of[w] : 0);
    own += equal_of[w];
  }
  if (threadIdx.x == 0) {
    p.begin[expert] = slot;
    if (expert == p.experts - 1) p.begin[p.experts] = slot + own;
  }

#pragma unroll 4
  for (int first = begin; first < end; first += 32) {
    const int i = first + lane;
    const int e = i < end ? p.chosen[i] - p.first_expert : -1;
    const bool mine = e == expert && expert < p.experts;
    const uint32_t mask = __ballot_sync(0xffffffffu, mine);
    if (mine) {
      const int at = slot + __popc(mask & ((1u << lane) - 1));
      p.token_of[at] = i / p.top_k;
      p.slot_of[i] = at;
    }
    if (expert == 0 && i < end && (e < 0 || e >= p.experts)) p.slot_of[i] = -1;
    slot += __popc(mask);
  }
}

}  // namespace

cudaError_t LaunchExpertSort(const ExpertSortParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.top_k <= 0 || p.top_k > kMaxTopK || p.experts < 0 || p.first_expert < 0 ||
      p.tokens * p.top_k > INT32_MAX / 2) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  return gpu::Launch(ExpertSortKernel,
                     {.name = "expert_sort",
                      .grid = dim3(static_cast<unsigned>(p.experts > 0 ? p.experts : 1)),
                      .block = dim3(kThreads),
                      .stream = stream},
                     p);
}

}  // namespace lapidary
