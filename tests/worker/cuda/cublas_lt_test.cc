#include "worker/cuda/cublas_lt.h"

#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <random>

#include "common/base/half.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/test_devices.h"
#include "worker/cuda/cuda_products.h"
#include "worker/cuda/cuda_workspace.h"

namespace lapidary {
namespace {

template <class T>
DeviceBuffer ToDevice(const std::vector<T>& values) {
  auto buffer = DeviceBuffer::Allocate(std::ssize(values) * int64_t{sizeof(T)}, "test");
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(
      cudaMemcpy(buffer->data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
      cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // it may still be on its way
  return *std::move(buffer);
}

// A product with everything it needs, bf16; strides padded, padding of x and w zero.
struct Problem {
  Problem(int64_t n, int64_t k, int64_t rows) : n(n), k(k), rows(rows) {
    stride = (k + 7) / 8 * 8;
    y_stride = (n + 7) / 8 * 8;
    std::mt19937 random(static_cast<unsigned>(n * 31 + k));
    std::normal_distribution<float> normal;
    w.assign(n * stride, 0);
    x.assign(CublasLt::PaddedRows(rows) * stride, 0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < k; ++j) w[i * stride + j] = ToBf16(normal(random));
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < k; ++j) x[i * stride + j] = ToBf16(normal(random));
    }
    w_device = ToDevice(w);
    x_device = ToDevice(x);
    y_device = ToDevice(std::vector<float>(CublasLt::PaddedRows(rows) * y_stride, NAN));
    matrix = {.data = w_device.data(), .n = n, .k = k, .k_stride = stride};
    in = {.x = x_device.data(), .stride = stride};
  }
  double Expected(int64_t row, int64_t output, double* size) const {
    double sum = 0;
    *size = 0;
    for (int64_t j = 0; j < k; ++j) {
      const double term =
          double{FromBf16(w[output * stride + j])} * double{FromBf16(x[row * stride + j])};
      sum += term;
      *size += std::abs(term);
    }
    return sum;
  }
  // fp32 sums of k terms err by 2^-24 of each partial sum at most, a bf16 store by 2^-9 of the
  // value.
  void Check(bool fp32, float cap) const {
    std::vector<uint8_t> raw(y_device.bytes());
    ASSERT_EQ(cudaMemcpy(raw.data(), y_device.data(), raw.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < n; ++o) {
        double size = 0;
        double expected = Expected(r, o, &size);
        double got = 0;
        if (fp32) {
          got = double{reinterpret_cast<const float*>(raw.data())[r * y_stride + o]};
          if (cap > 0) expected = double{cap} * std::tanh(expected / double{cap});
        } else {
          got = double{FromBf16(reinterpret_cast<const uint16_t*>(raw.data())[r * y_stride + o])};
        }
        const double tolerance =
            size * static_cast<double>(k) * 0x1p-24 + (fp32 ? 1e-5 : std::abs(expected) * 0x1p-8);
        ASSERT_NEAR(got, expected, tolerance) << "row " << r << ", output " << o;
      }
    }
  }

  int64_t n, k, rows, stride = 0, y_stride = 0;
  std::vector<uint16_t> w, x;
  DeviceBuffer w_device, x_device, y_device;
  GpuMatrix matrix;
  ProductInput in;
};

std::unique_ptr<CudaStream> NewStream() { return *CudaStream::Create(); }

TEST(CublasLt, MultipliesPreparedShapes) {
  const auto lt = CublasLt::Create();
  ASSERT_TRUE(lt.ok()) << lt.status();
  const auto stream = NewStream();
  for (const auto& [n, k, rows] :
       {std::array<int64_t, 3>{54, 75, 1}, {64, 64, 65}, {211, 54, 130}}) {
    for (const bool fp32 : {false, true}) {
      const Problem p(n, k, rows);
      const ProductOutput out{.y = p.y_device.data(),
                              .stride = p.y_stride,
                              .epilogue = fp32 ? ProductEpilogue::kFp32 : ProductEpilogue::kBf16};
      EXPECT_FALSE((*lt)->Product(p.matrix, p.in, rows, out, stream->raw()).ok());
      const absl::Status prepared = (*lt)->Prepare(CublasLt::ShapeOf(p.matrix, p.in, rows, out));
      ASSERT_TRUE(prepared.ok()) << prepared;
      const absl::Status done = (*lt)->Product(p.matrix, p.in, rows, out, stream->raw());
      ASSERT_TRUE(done.ok()) << done;
      ASSERT_TRUE(stream->Synchronize().ok());
      p.Check(fp32, 0);
    }
  }
}

// Few rows stream, many go to cuBLASLt, and many of a shape nobody prepared stream in slices.
TEST(CudaProducts, AnyNumberOfRows) {
  const auto stream = NewStream();
  CudaWorkspace workspace(*stream);
  CudaProducts products(ThisChip(), *stream);
  ASSERT_TRUE(products.Init(workspace, {.rows = 200, .gate_up = 64}).ok());
  for (const int64_t rows : {1, 64, 65, 130}) {
    for (const bool prepared : {true, false}) {
      const Problem p(48, 40, rows);
      const ProductOutput out{.y = p.y_device.data(),
                              .stride = p.y_stride,
                              .epilogue = ProductEpilogue::kFp32,
                              .softcap = 30};
      if (prepared) {
        ASSERT_TRUE(products.Prepare(p.matrix, p.in.stride, out, rows).ok());
      }
      products.Multiply("test", p.matrix, p.in, rows, out);
      const absl::Status done = stream->Synchronize();
      ASSERT_TRUE(done.ok()) << done;
      p.Check(true, 30);
    }
  }
}

}  // namespace
}  // namespace lapidary
