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
  explicit DeviceArray(int64_t count, int64_t skew = 0) : count_(count), skew_(skew) {
    const size_t bytes = static_cast<size_t>(count + skew) * sizeof(T);
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&base_), bytes), cudaSuccess);
    EXPECT_EQ(cudaMemset(base_, 0xff, bytes), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // a memset does not wait
  }
  explicit DeviceArray(const std::vector<T>& values, int64_t skew = 0)
      : DeviceArray(static_cast<int64_t>(values.size()), skew) {
    Set(values);
  }
  ~DeviceArray() { EXPECT_EQ(cudaFree(base_), cudaSuccess); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return base_ + skew_; }
  void Set(const std::vector<T>& values) {
    EXPECT_EQ(static_cast<int64_t>(values.size()), count_);
    EXPECT_EQ(cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  // After all the device has been given to do.
  std::vector<T> Get() {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data(), data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  const int64_t count_, skew_;
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
