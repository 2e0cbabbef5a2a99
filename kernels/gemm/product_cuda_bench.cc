// Streamed and grouped products of 26B-A4B on a GPU: time by events, and the share of the roof that
// limits them: bytes of weights (what a decode step is made of) or FLOPs (what a prefill is).
//
// Also compiled for the SIMT executor, where sizes shrink and times mean nothing.
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/device_bench_support.h"
#include "kernels/gemm/stream_product_cuda.h"

namespace lapidary {
namespace {

// Under emulation matrices shrink, and tokens as the experts do: an expert has as many as on a GPU,
// so that each of the kernels has its turn.
constexpr int kSmaller = kShrink == 1 ? 1 : 8;
constexpr int64_t kHidden = 2816 / kSmaller, kExpertWidth = 704 / kSmaller;
constexpr int kExperts = 128 / kSmaller, kTopK = 8;

// Bytes of weights against memory, or FLOPs against the tensor cores: what takes longer. Tensor
// cores multiply e4m3 twice as fast.
template <class Launch>
void TimeProduct(benchmark::State& state, const Device& device, double bytes, double flops,
                 bool e4m3, const Launch& launch) {
  const double flop_roof = device.flops_per_second * (e4m3 ? 2 : 1);
  if (flops * device.bytes_per_second > bytes * flop_roof) {
    TimeOnDevice(state, "flop_per_s", flops, flop_roof, launch);
  } else {
    TimeOnDevice(state, "bytes_per_s", bytes, device.bytes_per_second, launch);
  }
}

// Arguments: outputs, k, tokens, e4m3.
void BM_StreamProduct(benchmark::State& state) {
  const int64_t n = state.range(0) / kSmaller, k = state.range(1) / kSmaller;
  const int tokens = static_cast<int>(state.range(2));
  GpuMatrix w{.number = state.range(3) != 0 ? GpuNumber::kE4m3 : GpuNumber::kBf16,
              .n = n,
              .k = k,
              .k_stride = k};
  const Randoms matrix(w.bytes()), scale(n * 4), x(tokens * k * 2), x_scale(tokens * 4);
  const Zeros y(tokens * n * 2);
  w.data = matrix.As();
  ProductInput in{.x = x.As(), .stride = k};
  if (w.number == GpuNumber::kE4m3) {
    w.scale = scale.As<float>();
    in.scale = x_scale.As<float>();
  }
  const Device device = ThisDevice();
  const StreamPlan plan = PlanStream(w, tokens, device.chip);
  TimeProduct(state, device, static_cast<double>(w.bytes()), 2.0 * n * k * tokens,
              w.number == GpuNumber::kE4m3, [&](cudaStream_t stream) {
                return LaunchStreamProduct(w, in, tokens, {.y = y.As(), .stride = n}, plan,
                                           device.chip, stream);
              });
}
BENCHMARK(BM_StreamProduct)
    ->ArgsProduct({{8192, 262144}, {2816}, {1, 8, 32, 64}, {0, 1}})
    ->ArgsProduct({{2816}, {4096}, {1, 8, 32, 64}, {0, 1}})
    ->UseManualTime();

// Arguments: tokens, e4m3, down (else gate and up). Experts are drawn as a router would, evenly.
void BM_GroupedProduct(benchmark::State& state) {
  const int64_t tokens = std::max<int64_t>(1, state.range(0) / kSmaller), slots = tokens * kTopK;
  const bool down = state.range(2) != 0;
  GroupedParams p;
  p.w = {.number = state.range(1) != 0 ? GpuNumber::kE4m3 : GpuNumber::kBf16,
         .tiled = true,
         .n = down ? kHidden : GatedRows(kExpertWidth),
         .k = down ? kExpertWidth : kHidden};
  std::mt19937 random(1);
  std::vector<int32_t> count(kExperts), begin = {0}, row_of;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<bool> chosen(kExperts);
    for (int j = 0; j < kTopK;) {
      const uint32_t e = random() % kExperts;
      if (chosen[e]) continue;
      chosen[e] = true, ++count[e], ++j;
    }
  }
  int active = 0;
  for (const int32_t n : count) {
    begin.push_back(begin.back() + n);
    active += n > 0 ? 1 : 0;
  }
  for (int64_t s = 0; s < slots; ++s) row_of.push_back(static_cast<int32_t>(random() % tokens));
  const Randoms matrix(kExperts * p.w.bytes()), scale(kExperts * p.w.n * 4);
  const int64_t x_stride = (p.w.k + 15) / 16 * 16;  // rows begin at multiples of 16 bytes
  const Randoms x(slots * x_stride * 2), x_scale(slots * 4);
  const Zeros y(slots * p.w.n * 2);
  const Zeros device_begin(begin), device_row(row_of);
  p.w.data = matrix.As();
  p.in = {.x = x.As(), .stride = x_stride};
  if (p.w.number == GpuNumber::kE4m3) {
    p.w.scale = scale.As<float>();
    p.in.scale = x_scale.As<float>();
  }
  p.experts = kExperts;
  p.begin = device_begin.As<int32_t>();
  p.row_of = down ? nullptr : device_row.As<int32_t>();
  p.out = {.y = y.As(), .stride = down ? kHidden : kExpertWidth};
  p.out.epilogue = down ? ProductEpilogue::kBf16 : ProductEpilogue::kGatedGelu;
  p.max_slots = slots;
  const Device device = ThisDevice();
  const GroupedPlan plan = PlanGrouped(p, device.chip);
  TimeProduct(state, device, static_cast<double>(active * p.w.bytes()), 2.0 * p.w.n * p.w.k * slots,
              p.w.number == GpuNumber::kE4m3, [&](cudaStream_t stream) {
                return LaunchGroupedProduct(p, plan, device.chip, stream);
              });
}
BENCHMARK(BM_GroupedProduct)
    ->ArgsProduct({{1, 8, 32, 128, 512, 2048, 8192}, {0, 1}, {0, 1}})
    ->UseManualTime();

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
