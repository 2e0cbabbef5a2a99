// Streamed and grouped products of 26B-A4B on a GPU: time by events, bytes of weights per second
// (what a decode step is made of) and FLOPs per second (what a prefill is).
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/gemm/stream_product_cuda.h"

namespace lapidary {
namespace {

constexpr int64_t kHidden = 2816, kExpertWidth = 704;
constexpr int kExperts = 128, kTopK = 8;

Chip ThisChip() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) return {};
  const int kind = device.major == 8 && device.minor == 9 ? 89 : device.major * 10;
  return {.compute_capability = kind,
          .processors = device.multiProcessorCount,
          .shared_bytes = static_cast<int>(device.sharedMemPerBlockOptin)};
}

// Device memory of zeros: what is multiplied does not change the time, but for clocks.
class Zeros {
 public:
  explicit Zeros(int64_t bytes) {
    if (cudaMalloc(&data_, static_cast<size_t>(bytes)) != cudaSuccess) data_ = nullptr;
    if (data_ != nullptr) cudaMemset(data_, 0, static_cast<size_t>(bytes));
  }
  ~Zeros() { cudaFree(data_); }
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// Runs `launch` per iteration and reports the device's time.
template <class Launch>
void TimeOnDevice(benchmark::State& state, double bytes, double flops, Launch launch) {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess ||
      cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess ||
      cudaDeviceSynchronize() != cudaSuccess) {
    state.SkipWithError("no device");
    return;
  }
  for (auto _ : state) {
    cudaEventRecord(begin, stream);
    const cudaError_t error = launch(stream);
    cudaEventRecord(end, stream);
    if (error != cudaSuccess || cudaEventSynchronize(end) != cudaSuccess) {
      state.SkipWithError("the launch failed");
      break;
    }
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    state.SetIterationTime(ms * 1e-3);
  }
  using benchmark::Counter;
  state.counters["weights_per_s"] =
      Counter(bytes, Counter::kIsIterationInvariantRate, Counter::kIs1024);
  state.counters["flop_per_s"] = Counter(flops, Counter::kIsIterationInvariantRate);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
}

// Arguments: outputs, k, tokens, e4m3.
void BM_StreamProduct(benchmark::State& state) {
  const int64_t n = state.range(0), k = state.range(1);
  const int tokens = static_cast<int>(state.range(2));
  GpuMatrix w{.number = state.range(3) != 0 ? GpuNumber::kE4m3 : GpuNumber::kBf16,
              .n = n,
              .k = k,
              .k_stride = k};
  const Zeros matrix(w.bytes()), scale(n * 4), x(tokens * k * 2), x_scale(tokens * 4);
  const Zeros y(tokens * n * 2);
  w.data = matrix.data();
  ProductInput in{.x = x.data(), .stride = k};
  if (w.number == GpuNumber::kE4m3) {
    w.scale = static_cast<const float*>(scale.data());
    in.scale = static_cast<const float*>(x_scale.data());
  }
  const Chip chip = ThisChip();
  const StreamPlan plan = PlanStream(w, tokens, chip);
  TimeOnDevice(
      state, static_cast<double>(w.bytes()), 2.0 * n * k * tokens, [&](cudaStream_t stream) {
        return LaunchStreamProduct(w, in, tokens, {.y = y.data(), .stride = n}, plan, chip, stream);
      });
}
BENCHMARK(BM_StreamProduct)
    ->ArgsProduct({{8192, 262144}, {kHidden}, {1, 8, 32, 64}, {0, 1}})
    ->ArgsProduct({{kHidden}, {4096}, {1, 8, 32, 64}, {0, 1}})
    ->UseManualTime();

// Arguments: tokens, e4m3, down (else gate and up). Experts are drawn as a router would, evenly.
void BM_GroupedProduct(benchmark::State& state) {
  const int64_t tokens = state.range(0), slots = tokens * kTopK;
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
  const Zeros matrix(kExperts * p.w.bytes()), scale(kExperts * p.w.n * 4);
  const Zeros x(slots * p.w.k * 2), x_scale(slots * 4), y(slots * p.w.n * 2);
  const Zeros device_begin((kExperts + 1) * 4), device_row(slots * 4);
  cudaMemcpy(device_begin.data(), begin.data(), begin.size() * 4, cudaMemcpyHostToDevice);
  cudaMemcpy(device_row.data(), row_of.data(), row_of.size() * 4, cudaMemcpyHostToDevice);
  p.w.data = matrix.data();
  p.in = {.x = x.data(), .stride = p.w.k};
  if (p.w.number == GpuNumber::kE4m3) {
    p.w.scale = static_cast<const float*>(scale.data());
    p.in.scale = static_cast<const float*>(x_scale.data());
  }
  p.experts = kExperts;
  p.begin = static_cast<const int32_t*>(device_begin.data());
  p.row_of = down ? nullptr : static_cast<const int32_t*>(device_row.data());
  p.out = {.y = y.data(), .stride = down ? kHidden : kExpertWidth};
  p.out.epilogue = down ? ProductEpilogue::kBf16 : ProductEpilogue::kGatedGelu;
  p.max_slots = slots;
  const Chip chip = ThisChip();
  const GroupedPlan plan = PlanGrouped(p, chip);
  TimeOnDevice(state, static_cast<double>(active * p.w.bytes()), 2.0 * p.w.n * p.w.k * slots,
               [&](cudaStream_t stream) { return LaunchGroupedProduct(p, plan, chip, stream); });
}
BENCHMARK(BM_GroupedProduct)
    ->ArgsProduct({{1, 8, 32, 128, 512, 2048, 8192}, {0, 1}, {0, 1}})
    ->UseManualTime();

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
