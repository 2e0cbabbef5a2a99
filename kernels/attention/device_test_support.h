// What the tests of the attention kernels share: memory of the device, and the chips to be. Host
// code over the CUDA runtime: it runs under emulation and on a GPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/chip.h"

namespace lapidary {

// An array on the device. Every bit is set until it is written: NaN in each type.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    if (size == 0) return;
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)), cudaSuccess);
    Poison();
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    Upload(values);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  void Upload(const std::vector<T>& values) {
    ASSERT_EQ(values.size(), size_);
    if (size_ == 0) return;
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  std::vector<T> Download() const {
    std::vector<T> values(size_);
    if (size_ > 0) {
      EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
                cudaSuccess);
    }
    return values;
  }
  void Poison() {
    EXPECT_EQ(cudaMemset(data_, 0xff, size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // kernels run in streams that do not wait
  }

 private:
  T* data_ = nullptr;
  const size_t size_;
};

inline bool Emulated() {
#ifdef LAPIDARY_EMULATION
  return true;
#else
  return false;
#endif
}

// Under emulation one chip for each way the kernels are built; else the device's own.
inline std::vector<Chip> ChipsToTest() {
  if (Emulated()) {
    return {{.compute_capability = 80, .processors = 4, .shared_bytes = 163 << 10},
            {.compute_capability = 89, .processors = 4, .shared_bytes = 99 << 10},
            {.compute_capability = 90, .processors = 4, .shared_bytes = 227 << 10},
            {.compute_capability = 120, .processors = 4, .shared_bytes = 99 << 10}};
  }
  cudaDeviceProp properties;
  EXPECT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  return {{.compute_capability = properties.major * 10 + properties.minor,
           .processors = properties.multiProcessorCount,
           .shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin)}};
}

inline float Float(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float E4m3(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

// Half the distance of neighbours at x: what rounding to nearest errs by at most. bf16 has 8 bits
// of precision, e4m3 has 4 and its smallest normal number is 2^-6.
inline double HalfStepBf16(double x) { return x == 0 ? 0 : std::ldexp(1.0, std::ilogb(x) - 8); }
inline double HalfStepE4m3(double x) {
  return std::ldexp(1.0, std::max(x == 0 ? -6 : std::ilogb(x), -6) - 4);
}

}  // namespace lapidary
