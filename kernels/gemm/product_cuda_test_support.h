// Matrices and rows of tests of the device products: their numbers as double, their bytes on the
// device, a reference, and what may lie between.
#pragma once
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/chip.h"
#include "kernels/gemm/stream_product_cuda.h"

namespace lapidary {

// A copy of host data in device memory of exactly its size.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), cudaSuccess);
  }
  template <class T>
  explicit DeviceBytes(const std::vector<T>& host) : DeviceBytes(host.size() * sizeof(T)) {
    if (bytes_ == 0) return;
    EXPECT_EQ(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // it may still be on its way
  }
  ~DeviceBytes() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  std::vector<T> Read() const {
    std::vector<T> host(bytes_ / sizeof(T));
    EXPECT_EQ(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Chips whose kernels can be tested: under emulation one of each kind; on a GPU its own and the
// oldest, whose kernels run everywhere.
inline std::vector<Chip> TestChips() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) return {};
#ifdef LAPIDARY_EMULATION
  const std::vector<int> kinds = {80, 89, 90};  // 100 goes the ways of 90, 120 those of 90 and 89
#else
  std::vector<int> kinds = {80};
  const int own = device.major == 8 ? (device.minor == 9 ? 89 : 80) : device.major * 10;
  if (own != 80) kinds.push_back(own);
#endif
  std::vector<Chip> chips;
  for (const int kind : kinds) {
    const int most = kind == 80 ? 163 << 10 : kind == 89 || kind == 120 ? 99 << 10 : 227 << 10;
    chips.push_back(
        {.compute_capability = kind,
         .processors = device.multiProcessorCount,
         .shared_bytes = std::min(most, static_cast<int>(device.sharedMemPerBlockOptin))});
  }
  return chips;
}

inline uint16_t Bf16Bits(float v) {  // finite; nearest even
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float Bf16Value(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float v;
  std::memcpy(&v, &wide, 4);
  return v;
}
inline double E4m3Number(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double v =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -v : v;
}

// Rows of numbers: what they are, and their codes packed [rows][columns].
struct Numbers {
  GpuNumber number = GpuNumber::kBf16;
  int64_t rows = 0, columns = 0;
  std::vector<double> value;  // of the codes, without the scale
  std::vector<uint8_t> codes;
  std::vector<float> scale;  // [rows], e4m3 only

  int64_t element_bytes() const { return number == GpuNumber::kBf16 ? 2 : 1; }
  double Scale(int64_t row) const { return scale.empty() ? 1 : scale[row]; }
};
// Normal numbers; every 37th is 30 times as large.
inline Numbers MakeNumbers(GpuNumber number, int64_t rows, int64_t columns, uint32_t seed) {
  Numbers m{number, rows, columns, {}, {}, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  m.value.resize(rows * columns);
  m.codes.resize(rows * columns * m.element_bytes());
  for (int64_t i = 0; i < rows * columns; ++i) {
    if (number == GpuNumber::kBf16) {
      const uint16_t bits = Bf16Bits(normal(random) * (i % 37 == 5 ? 30.0f : 1.0f));
      std::memcpy(&m.codes[i * 2], &bits, 2);
      m.value[i] = Bf16Value(bits);
    } else {
      uint8_t code = static_cast<uint8_t>(random() >> 13);  // all codes, the subnormal ones too
      if ((code & 0x7f) == 0x7f) code ^= 1;                 // but NaN
      if (i % 37 != 5 && (code & 0x78) > 0x40) code &= 0xc7;
      m.codes[i] = code;
      m.value[i] = E4m3Number(code);
    }
  }
  if (number == GpuNumber::kE4m3) {
    m.scale.resize(rows);
    for (float& s : m.scale) s = 0.25f + 0.5f * static_cast<float>(random() % 1000) / 1000;
  }
  return m;
}

// Bytes of rows `stride` elements apart: behind each row NaN, which nobody may read.
inline std::vector<uint8_t> Strided(const Numbers& m, int64_t stride) {
  std::vector<uint8_t> bytes(m.rows * stride * m.element_bytes(), 0xff);
  const int64_t row = m.columns * m.element_bytes();
  for (int64_t r = 0; r < m.rows; ++r) {
    std::memcpy(&bytes[r * stride * m.element_bytes()], &m.codes[r * row], row);
  }
  return bytes;
}
inline int64_t PaddedStride(const Numbers& m) {
  const int64_t chunk = 16 / m.element_bytes();
  return (m.columns + chunk - 1) / chunk * chunk + chunk;
}
// `experts` matrices of w.n rows each, one behind the other.
inline std::vector<uint8_t> MatrixBytes(const Numbers& m, const GpuMatrix& w, int experts = 1) {
  if (!w.tiled) return Strided(m, w.k_stride);
  std::vector<uint8_t> bytes(experts * w.bytes());
  for (int64_t r = 0; r < m.rows; ++r) {
    PlaceMatrixRow(w, r % w.n, &m.codes[r * m.columns * m.element_bytes()],
                   bytes.data() + r / w.n * w.bytes());
  }
  return bytes;
}

// A sum as it should be and how far fp32 sums may be from it.
struct Expected {
  double value = 0, error = 0;
};
// k products, exact each. Adding n numbers in fp32, each partial sum rounded to `unit` of the
// largest it can be, errs by n * unit * (sum of magnitudes): 2^-23 where sums are cut off instead
// of rounded, 2^-13 where the e4m3 instruction keeps fewer bits. Scales: two more roundings.
inline Expected Sum(const Numbers& w, int64_t output, const Numbers& x, int64_t row,
                    double unit = 0x1p-23) {
  double value = 0, magnitude = 0;
  for (int64_t k = 0; k < w.columns; ++k) {
    const double product = w.value[output * w.columns + k] * x.value[row * x.columns + k];
    value += product;
    magnitude += std::abs(product);
  }
  const double scale = w.Scale(output) * x.Scale(row);
  return {value * scale, (static_cast<double>(w.columns + 8) * unit + 0x1p-22) * magnitude * scale};
}
// Rounding to bf16 errs by half of 2^-7 of the number.
inline Expected RoundedToBf16(Expected e) {
  return {e.value, e.error + 0x1p-8 * (std::abs(e.value) + e.error) + 0x1p-133};
}
// gelu_tanh(gate) * up: the slope of gelu is below 1.13, |gelu(g)| <= |g|; the exponential and six
// roundings are within 2^-19 of |g|.
inline Expected Gated(Expected gate, Expected up) {
  const double g = gate.value;
  const double gelu = 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
  const double gelu_error = 1.13 * gate.error + 0x1p-19 * std::abs(g);
  return {gelu * up.value,
          gelu_error * (std::abs(up.value) + up.error) + std::abs(gelu) * up.error};
}
// cap * tanh(v / cap): the slope is at most 1; tanhf errs by 2 units.
inline Expected Capped(Expected e, double cap) {
  return {cap * std::tanh(e.value / cap), e.error + cap * 0x1p-21};
}

// Compares rows of y (bits as float), says where it is worst.
class Comparison {
 public:
  void Add(const std::string& what, int64_t row, int64_t column, double got, Expected expected) {
    const double off = std::abs(got - expected.value);
    const double share = off <= expected.error ? off / std::max(expected.error, 1e-300) : INFINITY;
    if (!(share <= worst_) || worst_ < 0) {
      worst_ = share;
      text_ = what + ": row " + std::to_string(row) + " column " + std::to_string(column) + " is " +
              std::to_string(got) + ", expected " + std::to_string(expected.value) + " within " +
              std::to_string(expected.error);
    }
  }
  ~Comparison() { EXPECT_LE(worst_, 1.0) << text_; }

 private:
  double worst_ = -1;
  std::string text_;
};

}  // namespace lapidary
