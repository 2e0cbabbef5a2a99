// The router: fp32 logits of every expert, then each token's best ones.
//
// Per token 2 E M FLOPs in fp32 (0.7 MFLOP for 128 experts of 2816), beside 4 E M bytes of weights
// (1.4 MB) that a block of 8 tokens reads once, from the L2 cache after the first. The norm
// of the row is a factor of its logits, so a block sums squares beside the products and needs no
// pass of its own. Few tokens: the limit is latency, so the experts are spread over many blocks (4
// each); many: the loads per FMA, so a block takes 8 tokens x 8 experts.
//
// Eight warps split the row: thread i sums 4-element groups i, i + 256, ...; then the lanes' sums
// meet in a butterfly and the warps' in ascending order. A logit is summed in the same order
// whatever tile it is in, so its bits do not depend on how many tokens there are.
#include "kernels/gpu.h"
#include "kernels/moe/moe_cuda.h"

namespace lapidary {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kMaxExperts = 256, kMaxTopK = 16;
// Tokens from which the larger tile is used.
constexpr int64_t kManyTokens = 64;

// Sums 32 values over the lanes: lane l returns the sum of value l. Each value's sum is the same
// butterfly.
GPU_DEVICE float SumTransposed(float (&v)[32], int lane) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float send = upper ? v[i] : v[i + half];
      const float keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, send, half);
    }
  }
  return v[0];
}

// What a thread sums for a tile.
template <int kTokens, int kExperts>
struct RouterSums {
  float product[kTokens][kExperts];
  float square[kTokens];

  // Elements of the rows of the tile at one place of k.
  GPU_DEVICE void Add(const float (&x)[kTokens], const float (&w)[kExperts], float norm) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      square[t] = fmaf(x[t], x[t], square[t]);
      const float h = x[t] * norm;
#pragma unroll
      for (int e = 0; e < kExperts; ++e) product[t][e] = fmaf(h, w[e], product[t][e]);
    }
  }
};

template <int kTokens, int kExperts>
__global__ void __launch_bounds__(kThreads, kExperts == 8 ? 1 : 2)
    RouterLogitsKernel(const __grid_constant__ RouterParams p) {
  constexpr int kValues = kTokens * kExperts;
  GPU_SHARED(products, float[kWarps][kValues]);
  GPU_SHARED(squares, float[kWarps][kTokens]);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int64_t first_token = int64_t{blockIdx.y} * kTokens;
  const int first_expert = blockIdx.x * kExperts;
  const float* x[kTokens];
  const float* w[kExperts];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {  // beyond the end: the last row again, never stored
    const int64_t token = first_token + t < p.tokens ? first_token + t : p.tokens - 1;
    x[t] = p.x + token * p.x_stride;
  }
#pragma unroll
  for (int e = 0; e < kExperts; ++e) {
    const int expert = first_expert + e < p.experts ? first_expert + e : p.experts - 1;
    w[e] = p.w + expert * p.w_stride;
  }
  RouterSums<kTokens, kExperts> sums;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    sums.square[t] = 0;
#pragma unroll
    for (int e = 0; e < kExperts; ++e) sums.product[t][e] = 0;
  }

  const bool aligned =
      (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w) |
       reinterpret_cast<uintptr_t>(p.norm_weight) | static_cast<uintptr_t>(p.x_stride * 4) |
       static_cast<uintptr_t>(p.w_stride * 4)) %
          16 ==
      0;
  const int64_t whole = aligned ? p.dim / 4 * 4 : 0;
#pragma unroll 1
  for (int64_t k = thread * 4; k < whole; k += kThreads * 4) {
    float4 xs[kTokens], ws[kExperts];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) xs[t] = gpu::Load<float4>(x[t] + k);
#pragma unroll
    for (int e = 0; e < kExperts; ++e) ws[e] = gpu::Load<float4>(w[e] + k);
    const float4 norm = gpu::Load<float4>(p.norm_weight + k);
    float xk[kTokens], wk[kExperts];
    const auto add = [&](auto part, float norm_k) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) xk[t] = part(xs[t]);
#pragma unroll
      for (int e = 0; e < kExperts; ++e) wk[e] = part(ws[e]);
      sums.Add(xk, wk, norm_k);
    };
    add([](const float4& v) { return v.x; }, norm.x);
    add([](const float4& v) { return v.y; }, norm.y);
    add([](const float4& v) { return v.z; }, norm.z);
    add([](const float4& v) { return v.w; }, norm.w);
  }
#pragma unroll 1
  for (int64_t k = whole + thread; k < p.dim; k += kThreads) {
    float xk[kTokens], wk[kExperts];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) xk[t] = x[t][k];
#pragma unroll
    for (int e = 0; e < kExperts; ++e) wk[e] = w[e][k];
    sums.Add(xk, wk, p.norm_weight[k]);
  }

#pragma unroll
  for (int first = 0; first < kValues; first += 32) {
    float v[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      v[i] = sums.product[(first + i) / kExperts][(first + i) % kExperts];
    }
    products[warp][first + lane] = SumTransposed(v, lane);
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float square = gpu::WarpSum(sums.square[t]);
    if (lane == 0) squares[warp][t] = square;
  }
  __syncthreads();
  if (thread >= kValues) return;
  const int64_t token = first_token + thread / kExperts;
  const int expert = first_expert + thread % kExperts;
  if (token >= p.tokens || expert >= p.experts) return;
  float product = 0, square = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    product += products[i][thread];
    square += squares[i][thread / kExperts];
  }
  p.logits[token * p.experts + expert] =
      product / sqrtf(square / static_cast<float>(p.dim) + p.eps);
}

// Larger logits have larger keys; equal ones (0 and -0 too) the lower expert. No key is 0.
GPU_DEVICE uint64_t LogitKey(float logit, int expert) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | static_cast<uint32_t>(~expert);
}

// A warp per token.
__global__ void __launch_bounds__(128) RouterTopKKernel(const __grid_constant__ RouterParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t{blockIdx.x} * 4 + threadIdx.x / 32;
  if (token >= p.tokens) return;
  const float* logits = p.logits + token * p.experts;
  uint64_t keys[kMaxExperts / 32];
#pragma unroll
  for (int i = 0; i < kMaxExperts / 32; ++i) {
    const int expert = lane + 32 * i;
    keys[i] = expert < p.experts ? LogitKey(logits[expert], expert) : 0;
  }
  int own = 0;          // lane j: the j-th best expert
  float own_logit = 0;  // and its logit
#pragma unroll 1
  for (int j = 0; j < p.top_k; ++j) {
    uint64_t best = keys[0];
#pragma unroll
    for (int i = 1; i < kMaxExperts / 32; ++i) best = keys[i] > best ? keys[i] : best;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      const uint64_t other = __shfl_xor_sync(0xffffffffu, best, d);
      best = other > best ? other : best;
    }
#pragma unroll
    for (int i = 0; i < kMaxExperts / 32; ++i) keys[i] = keys[i] == best ? 0 : keys[i];
    if (lane == j) {
      own = static_cast<int>(~static_cast<uint32_t>(best));
      own_logit = logits[own];
    }
  }
  const float largest = __shfl_sync(0xffffffffu, own_logit, 0);
  const float mass = lane < p.top_k ? expf(own_logit - largest) : 0;
  float total = 0;
  int place = 0;  // of the own expert in ascending order
#pragma unroll 1
  for (int j = 0; j < p.top_k; ++j) {
    total += __shfl_sync(0xffffffffu, mass, j);
    place += __shfl_sync(0xffffffffu, own, j) < own ? 1 : 0;
  }
  if (lane < p.top_k) {
    p.chosen[token * p.top_k + place] = own;
    p.weight[token * p.top_k + place] = mass / total * p.factor[own];
  }
}

template <int kTokens, int kExperts>
cudaError_t StartLogits(const RouterParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.experts + kExperts - 1) / kExperts),
                  static_cast<unsigned>((p.tokens + kTokens - 1) / kTokens));
  return gpu::Launch(
      RouterLogitsKernel<kTokens, kExperts>,
      {.name = "router_logits", .grid = grid, .block = dim3(kThreads), .stream = stream}, p);
}

}  // namespace

cudaError_t LaunchRouter(const RouterParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.dim <= 0 || p.x_stride < p.dim || p.w_stride < p.dim || p.experts <= 0 ||
      p.experts > kMaxExperts || p.top_k <= 0 || p.top_k > kMaxTopK || p.top_k > p.experts ||
      p.logits == nullptr || p.tokens > int64_t{65535} * 8) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  const cudaError_t logits =
      p.tokens < kManyTokens ? StartLogits<8, 4>(p, stream) : StartLogits<8, 8>(p, stream);
  if (logits != cudaSuccess) return logits;
  return gpu::Launch(RouterTopKKernel,
                     {.name = "router_top_k",
                      .grid = dim3(static_cast<unsigned>((p.tokens + 3) / 4)),
                      .block = dim3(128),
                      .stream = stream},
                     p);
}

}  // namespace lapidary
