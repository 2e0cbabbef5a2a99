// Routing, sorting and combining of 26B-A4B's experts on a GPU: time by events, bytes against
// memory. The products between them: kernels/gemm/product_cuda_bench.cc.
#include <benchmark/benchmark.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/device_bench_support.h"
#include "kernels/moe/moe_cuda.h"

namespace lapidary {
namespace {

constexpr int64_t kHidden = 2816;
constexpr int kExperts = 128, kTopK = 8;

// The only argument.
int64_t Tokens(const benchmark::State& state) {
  return std::max<int64_t>(1, state.range(0) / kShrink);
}
void SomeTokens(benchmark::internal::Benchmark* b) {
  b->Arg(1)->Arg(8)->Arg(64)->Arg(512)->Arg(4096)->UseManualTime();
}

// The weights once, and each token's stream, logits (written, then read), choice and weights.
void BM_Router(benchmark::State& state) {
  const int64_t tokens = Tokens(state);
  const Zeros x(tokens * kHidden * 4), w(kExperts * kHidden * 4), norm(kHidden * 4);
  const Zeros factor(kExperts * 4), logits(tokens * kExperts * 4);
  const Zeros chosen(tokens * kTopK * 4), weight(tokens * kTopK * 4);
  const RouterParams p{.x = x.As<float>(),
                       .x_stride = kHidden,
                       .norm_weight = norm.As<float>(),
                       .w = w.As<float>(),
                       .w_stride = kHidden,
                       .factor = factor.As<float>(),
                       .tokens = tokens,
                       .dim = kHidden,
                       .experts = kExperts,
                       .top_k = kTopK,
                       .logits = logits.As<float>(),
                       .chosen = chosen.As<int32_t>(),
                       .weight = weight.As<float>()};
  const int64_t weights = (kExperts + 1) * kHidden * 4 + kExperts * 4;
  const int64_t token = kHidden * 4 + 2 * kExperts * 4 + kTopK * 8;
  TimeBytes(state, weights + tokens * token,
            [&](cudaStream_t stream) { return LaunchRouter(p, stream); });
}
BENCHMARK(BM_Router)->Apply(SomeTokens);

// Eight experts of each token, evenly.
std::vector<int32_t> SomeExperts(int64_t tokens) {
  std::mt19937 random(1);
  std::vector<int32_t> chosen;
  std::vector<int32_t> experts(kExperts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    std::sample(experts.begin(), experts.end(), std::back_inserter(chosen), kTopK, random);
  }
  return chosen;
}

// The choice read, tokens and slots written. Few bytes: a single block, whose latency is the limit.
void BM_ExpertSort(benchmark::State& state) {
  const int64_t tokens = Tokens(state), slots = tokens * kTopK;
  const Zeros chosen(SomeExperts(tokens)), begin((kExperts + 1) * 4);
  const Zeros token_of(slots * 4), slot_of(slots * 4);
  const ExpertSortParams p{.chosen = chosen.As<int32_t>(),
                           .tokens = tokens,
                           .top_k = kTopK,
                           .experts = kExperts,
                           .begin = begin.As<int32_t>(),
                           .token_of = token_of.As<int32_t>(),
                           .slot_of = slot_of.As<int32_t>()};
  TimeBytes(state, slots * 12 + (kExperts + 1) * 4,
            [&](cudaStream_t stream) { return LaunchExpertSort(p, stream); });
}
BENCHMARK(BM_ExpertSort)->Apply(SomeTokens);

// A token's rows of the experts, their slots and weights, and its result.
void BM_ExpertCombine(benchmark::State& state) {
  const int64_t tokens = Tokens(state), slots = tokens * kTopK;
  std::vector<int32_t> order(slots);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  const Zeros out(slots * kHidden * 2), slot_of(order), weight(slots * 4), y(tokens * kHidden * 2);
  const ExpertCombineParams p{.out = out.As<__nv_bfloat16>(),
                              .out_stride = kHidden,
                              .slot_of = slot_of.As<int32_t>(),
                              .weight = weight.As<float>(),
                              .tokens = tokens,
                              .dim = kHidden,
                              .top_k = kTopK,
                              .y = y.As<__nv_bfloat16>(),
                              .y_stride = kHidden};
  TimeBytes(state, slots * (kHidden * 2 + 8) + tokens * kHidden * 2,
            [&](cudaStream_t stream) { return LaunchExpertCombine(p, stream); });
}
BENCHMARK(BM_ExpertCombine)->Apply(SomeTokens);

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
