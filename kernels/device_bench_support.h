// For benchmarks of device code: the GPU and its roofs, memory, time by events. The roofs are
// vendors' figures at the clock that the driver reports.
#pragma once
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/chip.h"

namespace lapidary {

// By how much sizes shrink where the executor runs the kernels.
#ifdef LAPIDARY_EMULATION
inline constexpr int kShrink = 64;
#else
inline constexpr int kShrink = 1;
#endif

struct Device {
  Chip chip;
  double bytes_per_second = 0, flops_per_second = 0;
};
inline Device ThisDevice() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return {};
  const int kind = properties.major == 8 && properties.minor == 9 ? 89 : properties.major * 10;
  int clock_khz = 0, memory_khz = 0, bus_bits = 0;
  cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0);
  cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, 0);
  cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, 0);
  // Dense bf16 with fp32 sums, per processor and cycle. GeForce cards have half of 1024.
  const double flops = kind == 80 ? 2048 : kind == 90 ? 4096 : kind == 100 ? 8192 : 1024;
  return {.chip = {.compute_capability = kind,
                   .processors = properties.multiProcessorCount,
                   .shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin)},
          .bytes_per_second = 2e3 * memory_khz * bus_bits / 8,
          .flops_per_second = flops * properties.multiProcessorCount * clock_khz * 1e3};
}

// Device memory of zeros: for what is written, and for indices.
class Zeros {
 public:
  explicit Zeros(int64_t bytes) {
    if (cudaMalloc(&data_, static_cast<size_t>(bytes)) != cudaSuccess) data_ = nullptr;
    if (data_ != nullptr) cudaMemset(data_, 0, static_cast<size_t>(bytes));
  }
  template <class T>
  explicit Zeros(const std::vector<T>& values) : Zeros(values.size() * sizeof(T)) {
    cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Zeros() { cudaFree(data_); }
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;
  template <class T = void>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Device memory of random numbers, finite whether they are read as bf16 (0.5 to 2, of either sign),
// as fp32 or as e4m3: multiplying zeros takes less power, and so less time.
class Randoms : public Zeros {
 public:
  explicit Randoms(int64_t bytes) : Zeros(bytes) {
    std::mt19937 random(1);
    std::vector<uint32_t> block((1 << 20) / sizeof(uint32_t));
    for (uint32_t& word : block) word = (random() & 0x80bf80bf) | 0x3f003f00;
    // Upload one block, then double what is there.
    int64_t filled = std::min(std::ssize(block) * int64_t{sizeof(uint32_t)}, bytes);
    cudaMemcpy(As(), block.data(), static_cast<size_t>(filled), cudaMemcpyHostToDevice);
    for (; filled < bytes; filled *= 2) {
      cudaMemcpy(As<uint8_t>() + filled, As(),
                 static_cast<size_t>(std::min(filled, bytes - filled)), cudaMemcpyDeviceToDevice);
    }
  }
};

// More than any L2 cache holds, so that each launch finds its operands in device memory only.
inline constexpr int64_t kFlushBytes = (int64_t{256} << 20) / (int64_t{kShrink} * kShrink);

// Runs `launch` per iteration; reports the device's time and what it makes of `work` a second.
template <class Launch>
void TimeOnDevice(benchmark::State& state, const char* unit, double work, double roof,
                  const Launch& launch) {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess ||
      cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess ||
      cudaDeviceSynchronize() != cudaSuccess) {
    state.SkipWithError("no device");
    return;
  }
  const Zeros flushed(kFlushBytes);
  for ([[maybe_unused]] auto _ : state) {
    cudaMemsetAsync(flushed.As(), 0, kFlushBytes, stream);
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
  state.counters[unit] = Counter(work, Counter::kIsIterationInvariantRate);
  if (roof > 0) {
    state.counters["share_of_roof"] = Counter(work / roof, Counter::kIsIterationInvariantRate);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
}

// The same for what memory limits: `bytes` read and written, each once.
template <class Launch>
void TimeBytes(benchmark::State& state, int64_t bytes, const Launch& launch) {
  TimeOnDevice(state, "bytes_per_s", static_cast<double>(bytes), ThisDevice().bytes_per_second,
               launch);
}

}  // namespace lapidary
