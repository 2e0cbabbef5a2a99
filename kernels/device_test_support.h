// Device memory for kernel tests: exactly as large as asked for, so that one element too far is an
// error under the checker; filled with 0xff, which is NaN in every float format.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "common/base/half.h"

namespace lapidary {

template <class T>
class DeviceArray {
 public:
  // `skew` elements stand before the first, so that it is not aligned.
  explicit DeviceArray(size_t size, size_t skew = 0) : size_(size), skew_(skew) {
    if (size + skew == 0) return;
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&base_), (size + skew) * sizeof(T)), cudaSuccess);
    Poison();
  }
  explicit DeviceArray(const std::vector<T>& values, size_t skew = 0)
      : DeviceArray(values.size(), skew) {
    Set(values);
  }
  ~DeviceArray() { EXPECT_EQ(cudaFree(base_), cudaSuccess); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return base_ + skew_; }
  size_t size() const { return size_; }
  void Set(const std::vector<T>& values) {
    ASSERT_EQ(values.size(), size_);
    if (size_ == 0) return;
    EXPECT_EQ(cudaMemcpy(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
    Wait();
  }
  // After all the device has been given to do.
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    Wait();
    if (size_ == 0) return values;
    EXPECT_EQ(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }
  void Poison() {
    EXPECT_EQ(cudaMemset(base_, 0xff, (size_ + skew_) * sizeof(T)), cudaSuccess);
    Wait();
  }

 private:
  // Kernels run in streams that wait neither for a memset nor for a copy from pageable memory,
  // which may still be on its way when the call returns.
  static void Wait() { EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess); }

  const size_t size_, skew_;
  T* base_ = nullptr;
};

class TestStream {
 public:
  TestStream() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~TestStream() { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

inline __nv_bfloat16 Bf16(float v) {
  __nv_bfloat16_raw raw;
  raw.x = ToBf16(v);
  return raw;
}
inline float Float(__nv_bfloat16 v) { return FromBf16(static_cast<__nv_bfloat16_raw>(v).x); }
inline float Float(float v) { return v; }
inline uint32_t Bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

// Normal numbers with an outlier now and then.
inline std::vector<float> RandomFloats(int64_t count, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(count);
  for (float& v : values) v = random() % 200 == 0 ? 60 * normal(random) : normal(random);
  return values;
}
inline std::vector<__nv_bfloat16> RandomBf16(int64_t count, float spread, uint32_t seed) {
  std::vector<__nv_bfloat16> values;
  for (float v : RandomFloats(count, spread, seed)) values.push_back(Bf16(v));
  return values;
}

}  // namespace lapidary
