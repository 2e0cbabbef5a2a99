// The wrappers of kernels/gpu.h against plain arithmetic, and fragments against the layouts that
// CUTLASS publishes (fragment_layouts.h): under emulation this tests the models, on a GPU the PTX.
#include "kernels/simt/tests/wrappers_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/simt/tests/fragment_layouts.h"

namespace lapidary {
namespace {

class WrappersTest : public testing::Test {
 protected:
  void SetUp() override {
    int device = 0, major = 0, minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess) GTEST_SKIP() << "no device";
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    capability_ = major * 10 + minor;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    for (void* p : allocations_) EXPECT_EQ(cudaFree(p), cudaSuccess);
    if (stream_) {
      EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    }
  }
  template <class T>
  T* ToDevice(const std::vector<T>& v) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, v.size() * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // it may still be on its way
    allocations_.push_back(p);
    return static_cast<T*>(p);
  }
  // Runs, then brings `out`, which begins as `initial`, back.
  template <class T>
  std::vector<T> Run(cudaError_t (*launch)(const WrapperParams&, cudaStream_t), WrapperParams p,
                     std::vector<T> initial) {
    p.out = ToDevice(initial);
    EXPECT_EQ(launch(p, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(initial.data(), p.out, initial.size() * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return initial;
  }

  int capability_ = 0;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> allocations_;
  std::mt19937 random_{7};
};

std::vector<uint16_t> Counting(int n) {
  std::vector<uint16_t> v(n);
  for (int i = 0; i < n; ++i) v[i] = static_cast<uint16_t>(i);
  return v;
}

// -- Where elements lie. The element's value is its index.

template <int kHalves>
void ExpectHalves(const std::vector<uint32_t>& registers, const uint16_t (&layout)[32][kHalves]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int h = 0; h < kHalves; ++h) {
      const uint32_t r = registers[lane * kHalves / 2 + h / 2];
      EXPECT_EQ(h % 2 ? r >> 16 : r & 0xffff, layout[lane][h]) << "lane " << lane << " half " << h;
    }
  }
}
TEST_F(WrappersTest, Ldmatrix) {
  const WrapperParams p{.a = ToDevice(Counting(256))};
  ExpectHalves(Run(LaunchLdmatrix4, p, std::vector<uint32_t>(128)), simt::kLdmatrix4);
  ExpectHalves(Run(LaunchLdmatrix4Trans, p, std::vector<uint32_t>(128)), simt::kLdmatrix4Trans);
  ExpectHalves(Run(LaunchLdmatrix2, p, std::vector<uint32_t>(64)), simt::kLdmatrix2);
}
TEST_F(WrappersTest, Movmatrix) {
  const WrapperParams p{.a = ToDevice(Counting(64))};
  ExpectHalves(Run(LaunchMovmatrix, p, std::vector<uint32_t>(32)), simt::kMovmatrix);
}

// -- Products of small whole numbers: exact, whatever the order of the sums.

uint16_t Bf16(int v) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(v)) >> 16);
}
// v from -8 to 8.
uint8_t E4m3(int v) {
  const int magnitude = v < 0 ? -v : v;
  if (magnitude == 0) return 0;
  const int exponent = std::bit_width(static_cast<unsigned>(magnitude)) - 1;
  const int mantissa = (magnitude << 3 >> exponent) & 7;
  return static_cast<uint8_t>((v < 0 ? 0x80 : 0) | (exponent + 7) << 3 | mantissa);
}
std::vector<int> SmallNumbers(size_t n, std::mt19937* random) {
  std::uniform_int_distribution<int> uniform(-8, 8);
  std::vector<int> v(n);
  for (int& x : v) x = uniform(*random);
  return v;
}
// Elements of a matrix as the lanes hold them.
template <class T, int kElements, class Convert>
std::vector<T> Fragments(const std::vector<int>& matrix, const uint16_t (&layout)[32][kElements],
                         Convert convert) {
  std::vector<T> v;
  for (const auto& lane : layout) {
    for (uint16_t i : lane) v.push_back(convert(matrix[i]));
  }
  return v;
}
// d [16, 8] += a [16, k] b^T [8, k]
void ExpectProduct(const std::vector<float>& d, const uint16_t (&layout)[32][4],
                   const std::vector<int>& a, const std::vector<int>& b,
                   const std::vector<int>& addend, int k) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int m = layout[lane][i] / 8, n = layout[lane][i] % 8;
      int expected = addend[layout[lane][i]];
      for (int j = 0; j < k; ++j) expected += a[m * k + j] * b[n * k + j];
      EXPECT_EQ(d[lane * 4 + i], expected) << "row " << m << " column " << n;
    }
  }
}
TEST_F(WrappersTest, MmaBf16) {
  const auto a = SmallNumbers(256, &random_), b = SmallNumbers(128, &random_);
  const auto c = SmallNumbers(128, &random_);
  const WrapperParams p{.a = ToDevice(Fragments<uint16_t>(a, simt::kMmaBf16A, Bf16)),
                        .b = ToDevice(Fragments<uint16_t>(b, simt::kMmaBf16B, Bf16))};
  const auto identity = [](int v) { return static_cast<float>(v); };
  const auto d = Run(LaunchMmaBf16, p, Fragments<float>(c, simt::kMmaD, identity));
  ExpectProduct(d, simt::kMmaD, a, b, c, 16);
}
// Small whole numbers in fp16; fragments lie as those of bf16.
uint16_t F16(int v) {
  const int magnitude = v < 0 ? -v : v;
  if (magnitude == 0) return 0;
  const int exponent = std::bit_width(static_cast<unsigned>(magnitude)) - 1;
  const int mantissa = (magnitude << 10 >> exponent) & 1023;
  return static_cast<uint16_t>((v < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | mantissa);
}
TEST_F(WrappersTest, MmaF16) {
  const auto a = SmallNumbers(256, &random_), b = SmallNumbers(128, &random_);
  const auto c = SmallNumbers(128, &random_);
  const WrapperParams p{.a = ToDevice(Fragments<uint16_t>(a, simt::kMmaBf16A, F16)),
                        .b = ToDevice(Fragments<uint16_t>(b, simt::kMmaBf16B, F16))};
  const auto identity = [](int v) { return static_cast<float>(v); };
  const auto d = Run(LaunchMmaF16, p, Fragments<float>(c, simt::kMmaD, identity));
  ExpectProduct(d, simt::kMmaD, a, b, c, 16);
}
TEST_F(WrappersTest, MmaE4m3) {
  if (capability_ < 89) GTEST_SKIP() << "sm_" << capability_ << " has no e4m3 products";
  const auto a = SmallNumbers(512, &random_), b = SmallNumbers(256, &random_);
  const auto c = SmallNumbers(128, &random_);
  const WrapperParams p{.a = ToDevice(Fragments<uint8_t>(a, simt::kMmaE4m3A, E4m3)),
                        .b = ToDevice(Fragments<uint8_t>(b, simt::kMmaE4m3B, E4m3))};
  const auto identity = [](int v) { return static_cast<float>(v); };
  const auto d = Run(LaunchMmaE4m3, p, Fragments<float>(c, simt::kMmaE4m3D, identity));
  ExpectProduct(d, simt::kMmaE4m3D, a, b, c, 32);
}

TEST_F(WrappersTest, Wgmma) {
  if (capability_ != 90) GTEST_SKIP() << "sm_" << capability_ << " has no wgmma";
  for (const int tiles : {1, 2, 5}) {
    const auto a = SmallNumbers(tiles * 4096, &random_), b = SmallNumbers(tiles * 4096, &random_);
    auto swizzled = [&](const std::vector<int>& m) {
      std::vector<uint16_t> v(m.size());
      for (size_t i = 0; i < m.size(); ++i) {
        const size_t row = i / 64 % 64, column = i % 64;
        v[i / 4096 * 4096 + simt::kSwizzledChunk[row][column / 8] * 8 + column % 8] = Bf16(m[i]);
      }
      return v;
    };
    const WrapperParams p{.a = ToDevice(swizzled(a)), .b = ToDevice(swizzled(b)), .n = tiles};
    for (auto launch : {LaunchWgmma, LaunchWgmmaBulk}) {
      const auto d = Run(launch, p, std::vector<float>(128 * 32, NAN));
      for (int thread = 0; thread < 128; ++thread) {
        for (int i = 0; i < 32; ++i) {
          const int m = simt::kWgmmaD[thread][i] / 64, n = simt::kWgmmaD[thread][i] % 64;
          int expected = 0;
          for (int t = 0; t < tiles; ++t) {
            for (int k = 0; k < 64; ++k) {
              expected += a[t * 4096 + m * 64 + k] * b[t * 4096 + n * 64 + k];
            }
          }
          ASSERT_EQ(d[thread * 32 + i], expected) << "row " << m << " column " << n;
        }
      }
    }
  }
}

// 128 columns: accumulators 4 i to 4 i + 3 are those of columns 8 i to 8 i + 7, as with 64.
TEST_F(WrappersTest, Wgmma128) {
  if (capability_ != 90) GTEST_SKIP() << "sm_" << capability_ << " has no wgmma";
  const int tiles = 3;
  const auto a = SmallNumbers(tiles * 4096, &random_), b = SmallNumbers(tiles * 8192, &random_);
  auto swizzled = [](const std::vector<int>& m) {
    std::vector<uint16_t> v(m.size());
    for (size_t i = 0; i < m.size(); ++i) {
      const size_t row = i / 64, column = i % 64;
      v[row * 64 + (column / 8 ^ row % 8) * 8 + column % 8] = Bf16(m[i]);
    }
    return v;
  };
  const WrapperParams p{.a = ToDevice(swizzled(a)), .b = ToDevice(swizzled(b)), .n = tiles};
  const auto d = Run(LaunchWgmma128, p, std::vector<float>(128 * 64, NAN));
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 64; ++i) {
      const int m = simt::kWgmmaD[thread][i % 32] / 64;
      const int n = simt::kWgmmaD[thread][i % 32] % 64 + i / 32 * 64;
      int expected = 0;
      for (int t = 0; t < tiles; ++t) {
        for (int k = 0; k < 64; ++k) {
          expected += a[t * 4096 + m * 64 + k] * b[t * 8192 + n * 64 + k];
        }
      }
      ASSERT_EQ(d[thread * 64 + i], expected) << "row " << m << " column " << n;
    }
  }
}

// -- Copies.

TEST_F(WrappersTest, CpAsyncUpTo16FillsWithZeros) {
  std::vector<uint8_t> a(32 * 16);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(i % 255 + 1);
  const WrapperParams p{.a = ToDevice(a)};
  const auto out = Run(LaunchCpAsyncUpTo16, p, std::vector<uint8_t>(a.size(), 0xee));
  for (int i = 0; i < 32; ++i) {
    for (int j = 0; j < 16; ++j) {
      const bool taken = i < 17 && j < i;
      EXPECT_EQ(out[i * 16 + j], taken ? a[i * 16 + j] : 0) << "chunk " << i << " byte " << j;
    }
  }
}

// -- Arithmetic.

TEST_F(WrappersTest, WidenE4m3IsExact) {
  std::vector<uint8_t> codes;
  for (int code = 0; code < 256; ++code) {
    codes.push_back(static_cast<uint8_t>((code & 0x7f) == 0x7f ? 0 : code));  // but for NaN
  }
  const WrapperParams p{.a = ToDevice(codes), .n = 64};
  const auto out = Run(LaunchWidenE4m3, p, std::vector<uint16_t>(256, 0xffff));
  for (int i = 0; i < 256; ++i) {
    const int code = codes[i], exponent = code >> 3 & 15, mantissa = code & 7;
    const double value =
        std::ldexp(exponent == 0 ? mantissa : 8 + mantissa, exponent == 0 ? -9 : exponent - 10);
    const int wide = out[i] >> 10 & 31, fraction = out[i] & 1023;
    const double got =
        std::ldexp(wide == 0 ? fraction : 1024 + fraction, wide == 0 ? -24 : wide - 25);
    EXPECT_EQ(got, value) << "code " << code;
    EXPECT_EQ(out[i] >> 15, code >> 7) << "code " << code;
  }
}

TEST_F(WrappersTest, Exp2IsWithin2ToMinus21) {
  std::vector<float> a;
  for (int i = -2000; i <= 2000; ++i) a.push_back(static_cast<float>(i) / 16);
  a.insert(a.end(), {-INFINITY, -200, -127, -126, 0, 200, INFINITY});
  const WrapperParams p{.a = ToDevice(a), .n = static_cast<int>(a.size())};
  const auto out = Run(LaunchExp2, p, std::vector<float>(a.size(), NAN));
  for (size_t i = 0; i < a.size(); ++i) {
    const double exact = std::exp2(double{a[i]});
    if (exact > 3.4028235e38) {
      EXPECT_EQ(out[i], INFINITY) << a[i];
    } else if (exact < 0x1p-126) {
      EXPECT_LT(out[i], 0x1p-126) << a[i];
      EXPECT_TRUE(out[i] == 0 || a[i] > -126.01f) << a[i];
    } else {
      EXPECT_NEAR(out[i] / exact, 1, 0x1p-21) << a[i];
    }
  }
}
TEST_F(WrappersTest, PackBf16RoundsToNearestEven) {
  const std::vector<float> a = {1.0f,          -2.5f,        1.00390625f,  // a tie, down to even
                                1.01171875f,                               // a tie, up to even
                                1.00390637f,   -1.00390637f, INFINITY,    -0.0f,
                                3.3895314e38f, 3.4e38f,      1e-40f,      0x1p-133f};
  const std::vector<uint16_t> expected = {0x3f80, 0xc020, 0x3f80, 0x3f82, 0x3f81, 0xbf81,
                                          0x7f80, 0x8000, 0x7f7f, 0x7f80, 0x0001, 0x0001};
  const WrapperParams p{.a = ToDevice(a), .n = static_cast<int>(a.size() / 2)};
  const auto out = Run(LaunchPackBf16, p, std::vector<uint16_t>(a.size()));
  EXPECT_EQ(out, expected);
}

// Rounds once, and keeps subnormal operands: 2^120 times what an e4m3 code is as a small bf16.
TEST_F(WrappersTest, MulBf16x2) {
  const std::vector<uint16_t> a = {0x3f80, 0x4049, 0xbf81, 0x3f81, 0x3fff, 0x7f00,
                                   0x0001, 0x8040, 0x0010, 0x07f0, 0x8070, 0x0080};
  const std::vector<uint16_t> b = {0xc000, 0x3f80, 0x3f81, 0x3f83, 0x3fff, 0x4000,
                                   0x7b80, 0x7b80, 0x7b80, 0x7b80, 0x7b80, 0x7b80};
  const std::vector<uint16_t> expected = {0xc000, 0x4049, 0xbf82, 0x3f84, 0x407e, 0x7f80,
                                          0x3900, 0xbc00, 0x3b00, 0x43f0, 0xbc60, 0x3c80};
  const WrapperParams p{.a = ToDevice(a), .b = ToDevice(b), .n = static_cast<int>(a.size() / 2)};
  EXPECT_EQ(Run(LaunchMulBf16x2, p, std::vector<uint16_t>(a.size())), expected);
}

unsigned Reverse(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
TEST_F(WrappersTest, Integers) {
  std::vector<unsigned> a = {0, 1, 0x80000000u, 0xffffffffu, 0x7fffffff, 77}, b = a;
  std::reverse(b.begin(), b.end());
  for (int i = 0; i < 300; ++i) {
    a.push_back(random_() >> (random_() % 32));
    b.push_back(random_());
  }
  const int n = static_cast<int>(a.size());
  const WrapperParams p{.a = ToDevice(a), .b = ToDevice(b), .n = n};
  const auto out = Run(LaunchIntegers, p, std::vector<unsigned>(a.size() * kIntegerResults));
  for (int i = 0; i < n; ++i) {
    const unsigned x = a[i], y = b[i];
    const int sx = static_cast<int>(x), sy = static_cast<int>(y);
    const uint64_t wide = uint64_t{x} << 32 | y, other = wide ^ 0x123456789abcdefu;
    const uint64_t funnel = uint64_t{y} << 32 | x;
    // The high half of a 128-bit product, by halves.
    const uint64_t wl = wide & 0xffffffff, wh = wide >> 32, ol = other & 0xffffffff,
                   oh = other >> 32;
    const uint64_t middle = wh * ol + (wl * ol >> 32);
    const uint64_t high = wh * oh + (middle >> 32) + ((wl * oh + (middle & 0xffffffff)) >> 32);
    unsigned permuted = 0;
    for (int j = 0; j < 4; ++j) {
      permuted |= unsigned{static_cast<uint8_t>(funnel >> 8 * (y >> 4 * j & 7))} << 8 * j;
    }
    int dot = 7;
    for (int j = 0; j < 4; ++j) {
      dot += static_cast<int8_t>(x >> 8 * j) * static_cast<int8_t>(y >> 8 * j);
    }
    const unsigned shift = y & 31;
    const unsigned expected[kIntegerResults] = {
        static_cast<unsigned>(std::popcount(x)),
        static_cast<unsigned>(std::popcount(wide)),
        static_cast<unsigned>(std::countl_zero(x)),
        static_cast<unsigned>(std::countl_zero(wide)),
        x ? static_cast<unsigned>(std::countr_zero(x)) + 1 : 0,
        Reverse(x),
        static_cast<unsigned>(uint64_t{x} * y >> 32),
        static_cast<unsigned>(int64_t{sx} * sy >> 32),
        static_cast<unsigned>(high),
        permuted,
        static_cast<unsigned>(funnel << shift >> 32),
        static_cast<unsigned>(funnel >> shift),
        static_cast<unsigned>(std::min(sx, sy)),
        std::max(x, y),
        static_cast<unsigned>(dot),
        static_cast<unsigned>(std::min(sx, static_cast<int>(y >> 1)))};
    for (int j = 0; j < kIntegerResults; ++j) {
      EXPECT_EQ(out[i * kIntegerResults + j], expected[j])
          << "result " << j << " of " << x << ", " << y;
    }
  }
}

TEST_F(WrappersTest, FloatsRoundOnce) {
  std::vector<float> a = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 3e9f, -3e9f, 1e-20f, 0x1p-149f, 7};
  std::vector<float> b = {1, 3, 0.1f, -7, 2.5f, 3.5f, 1e10f, 3, 0.5f, 1e-30f};
  std::normal_distribution<float> normal(0, 100);
  for (int i = 0; i < 300; ++i) {
    a.push_back(normal(random_));
    b.push_back(normal(random_));
  }
  const int n = static_cast<int>(a.size());
  const WrapperParams p{.a = ToDevice(a), .b = ToDevice(b), .n = n};
  const auto out = Run(LaunchFloats, p, std::vector<float>(a.size() * kFloatResults, NAN));
  auto whole = [](double v) {  // saturates
    return std::bit_cast<float>(static_cast<int>(std::clamp(v, -2147483648.0, 2147483647.0)));
  };
  for (int i = 0; i < n; ++i) {
    const double x = a[i], y = b[i];
    const double natural = std::clamp(std::nearbyint(y), 0.0, 4294967295.0);
    const float expected[kFloatResults] = {static_cast<float>(x + y),
                                           static_cast<float>(x - y),
                                           static_cast<float>(x * y),
                                           std::fma(a[i], b[i], a[i]),
                                           static_cast<float>(x / y),
                                           static_cast<float>(std::sqrt(std::fabs(x))),
                                           static_cast<float>(1 / y),
                                           whole(std::nearbyint(x)),
                                           whole(std::trunc(x)),
                                           std::bit_cast<float>(static_cast<unsigned>(natural)),
                                           whole(std::ceil(x)),
                                           whole(std::floor(x)),
                                           static_cast<float>(std::bit_cast<int>(a[i])),
                                           static_cast<float>(x * y),
                                           std::clamp(a[i], 0.0f, 1.0f),
                                           std::min(a[i], b[i])};
    for (int j = 0; j < kFloatResults; ++j) {
      EXPECT_EQ(std::bit_cast<unsigned>(out[i * kFloatResults + j]),
                std::bit_cast<unsigned>(expected[j]))
          << "result " << j << " of " << a[i] << ", " << b[i];
    }
  }
}

// -- Threads together.

TEST_F(WrappersTest, WarpFunctions) {
  std::vector<int> a(32);
  for (int i = 0; i < 32; ++i) a[i] = i * i * 37 % 999;
  const WrapperParams p{.a = ToDevice(a)};
  const auto out = Run(LaunchWarpFunctions, p, std::vector<int>(32 * kWarpResults));
  unsigned odd = 0, parity = 0;
  int sum = 0, five = 0;
  for (int i = 0; i < 32; ++i) {
    odd |= static_cast<unsigned>(a[i] & 1) << i;
    parity ^= static_cast<unsigned>(a[i]);
    sum += a[i];
    five |= a[i] == 5;
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int base = lane / 8 * 8;
    unsigned alike = 0;
    for (int i = 0; i < 32; ++i) alike |= static_cast<unsigned>(a[i] % 5 == a[lane] % 5) << i;
    const int expected[kWarpResults] = {a[(lane + 3) % 32],
                                        a[lane < 5 ? lane : lane - 5],
                                        a[lane + 5 > 31 ? lane : lane + 5],
                                        a[lane ^ 17],
                                        a[base + 1],
                                        a[lane - 3 < base ? lane : lane - 3],
                                        a[lane + 3 > base + 7 ? lane : lane + 3],
                                        a[(lane ^ 9) > base + 7 ? lane : lane ^ 9],
                                        static_cast<int>(odd),
                                        five,
                                        1,
                                        static_cast<int>(alike),
                                        -1,
                                        1,
                                        sum,
                                        *std::max_element(a.begin(), a.end()),
                                        *std::min_element(a.begin(), a.end()),
                                        static_cast<int>(parity),
                                        a[lane ^ 8],
                                        sum};
    for (int j = 0; j < kWarpResults; ++j) {
      EXPECT_EQ(out[lane * kWarpResults + j], expected[j]) << "result " << j << " lane " << lane;
    }
  }
}
TEST_F(WrappersTest, Atomics) {
  std::vector<unsigned> initial(kAtomicResults, 0);
  initial[3] = 500;
  initial[5] = 4;
  initial[6] = 0xffffffffu;
  const auto out = Run(LaunchAtomics, {}, initial);
  EXPECT_EQ(out[0], 191u * 96u);
  EXPECT_EQ(out[1], 0u - 384u);
  EXPECT_EQ(out[2], 100u);
  EXPECT_EQ(out[3], 0u);
  EXPECT_EQ(out[4], 192u % 10u);
  EXPECT_EQ(out[5], (4u + 1920u - 192u) % 10u);
  EXPECT_EQ(out[6], 0xffffff00u);
  EXPECT_EQ(out[7], 0xfffffu);
  EXPECT_EQ(out[8], 0u);
  EXPECT_EQ(std::bit_cast<float>(out[9]), 96.0f);
  EXPECT_EQ(out[11], 96u);
  EXPECT_EQ(out[10], 0u);
}
TEST_F(WrappersTest, SystemWords) {
  const auto out =
      Run(LaunchSystemWords, {.a = ToDevice<uint32_t>({7})}, std::vector<uint32_t>(3, 0));
  EXPECT_EQ(out, (std::vector<uint32_t>{7, 7, 1}));
}
TEST_F(WrappersTest, NamedBarriers) {
  const auto out = Run(LaunchNamedBarriers, {}, std::vector<int>(256, -1));
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(out[i], (i ^ 64) + 3 + (i < 128 ? 0 : i - 128 + 3)) << i;
  }
}

}  // namespace
}  // namespace lapidary
