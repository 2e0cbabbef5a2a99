// y = W x for few tokens: the weights stream through shared memory once, the tokens ride along.
//
// Per output and token 2 k FLOPs; per output 2 k bytes of weights (k for e4m3), read once per token
// tile; x (2 k bytes a token) is read by every block, from the L2 cache. 64 rows x 8 tokens: 9 KiB
// brought in per 8 KiB of weights; 64 x 64: 16 KiB. Memory bandwidth is the limit: a tile of 8 KiB
// takes a warp 16 ldmatrix and 16 products of its own (8 tokens), about 130 instructions in all.
#include "kernels/gemm/internal/stream_tile.inc.h"

namespace lapidary {
namespace {

struct StreamParams {
  GpuMatrix w;
  ProductInput in;
  ProductOutput out;
  int tokens = 0;
};

template <TileMath kMath, int kRows, int kTokens>
__global__ void __launch_bounds__(kStreamThreads, 2)
    StreamProductKernel(const __grid_constant__ StreamParams p) {
  GPU_DYN_SMEM(uint8_t, shared);
  StreamWork work;
  work.weights = static_cast<const uint8_t*>(p.w.data);
  work.weight_scale = p.w.scale;
  work.first_output = int64_t{blockIdx.x} * kRows;
  work.first_slot = int64_t{blockIdx.y} * kTokens;
  const int64_t left = p.tokens - work.first_slot;
  work.count = static_cast<int>(left < kTokens ? left : kTokens);
  StreamBlock<kMath, kRows, kTokens, WeightSource::kAny>(p.w, p.in, p.out, work, shared);
}

template <TileMath kMath, int kRows, int kTokens>
cudaError_t Start(const StreamParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.w.n + kRows - 1) / kRows),
                  static_cast<unsigned>((p.tokens + kTokens - 1) / kTokens));
  return gpu::Launch(StreamProductKernel<kMath, kRows, kTokens>,
                     {.name = "stream_product",
                      .grid = grid,
                      .block = dim3(kStreamThreads),
                      .shared_bytes = size_t{StreamSharedBytes(kRows, kTokens)},
                      .stream = stream},
                     p);
}

template <TileMath kMath, int kRows>
cudaError_t StartRows(const StreamParams& p, int token_tile, cudaStream_t stream) {
  switch (token_tile) {
    case 8:
      return Start<kMath, kRows, 8>(p, stream);
    case 16:
      return Start<kMath, kRows, 16>(p, stream);
    case 32:
      return Start<kMath, kRows, 32>(p, stream);
    case 64:
      return Start<kMath, kRows, 64>(p, stream);
  }
  return cudaErrorInvalidValue;
}

template <TileMath kMath>
cudaError_t StartMath(const StreamParams& p, const StreamPlan& plan, cudaStream_t stream) {
  switch (plan.row_tile) {
    case 16:
      return StartRows<kMath, 16>(p, plan.token_tile, stream);
    case 32:
      return StartRows<kMath, 32>(p, plan.token_tile, stream);
    case 64:
      return StartRows<kMath, 64>(p, plan.token_tile, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchStreamProduct(const GpuMatrix& w, const ProductInput& in, int tokens,
                                const ProductOutput& out, const StreamPlan& plan, const Chip& chip,
                                cudaStream_t stream) {
  const bool tiles = (plan.row_tile == 16 || plan.row_tile == 32 || plan.row_tile == 64) &&
                     (plan.token_tile == 8 || plan.token_tile == 16 || plan.token_tile == 32 ||
                      plan.token_tile == 64);
  if (tokens < 0 || !tiles || plan.split_k != kStreamWarps || !ValidProduct(w, in, out) ||
      StreamSharedBytes(plan.row_tile, plan.token_tile) > chip.shared_bytes) {
    return cudaErrorInvalidValue;
  }
  if (tokens == 0) return cudaSuccess;
  const StreamParams p{.w = w, .in = in, .out = out, .tokens = tokens};
  return w.number == GpuNumber::kBf16 ? StartMath<TileMath::kBf16>(p, plan, stream)
                                      : StartMath<TileMath::kWidened>(p, plan, stream);
}

}  // namespace lapidary
