// The cuBLASLt stand-in: products against double precision, and what it must refuse.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

namespace lapidary {
namespace {

// y[n][m] = x[n][k] w[m][k]^T, row-major, as a column-major product: A = w^T, B = x.
struct Product {
  cudaDataType_t type = CUDA_R_16BF, out = CUDA_R_16BF;
  uint64_t m = 64, n = 8, k = 128;
  int64_t lda = 0, ldb = 0, ldd = 0;  // 0: no padding
  cublasOperation_t transpose_a = CUBLAS_OP_T, transpose_b = CUBLAS_OP_N;
  int32_t scale_mode = 0;
};

class CublasLtTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    EXPECT_EQ(cublasLtDestroy(handle_), CUBLAS_STATUS_SUCCESS);
    cudaDeviceReset();
  }
  template <class T>
  T* Device(const std::vector<T>& v) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, v.size() * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // it may still be on its way
    return static_cast<T*>(p);
  }
  void Describe(const Product& p) {
    ASSERT_EQ(cublasLtMatmulDescInit(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              CUBLAS_STATUS_SUCCESS);
    Set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b);
    Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, p.scale_mode);
    Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, p.scale_mode);
    const bool a_plain = p.transpose_a == CUBLAS_OP_N, b_plain = p.transpose_b == CUBLAS_OP_N;
    auto init = [](cublasLtMatrixLayoutOpaque_t* l, cudaDataType_t type, uint64_t rows,
                   uint64_t columns, int64_t ld) {
      ASSERT_EQ(
          cublasLtMatrixLayoutInit(l, type, rows, columns, ld ? ld : static_cast<int64_t>(rows)),
          CUBLAS_STATUS_SUCCESS);
    };
    init(&a_, p.type, a_plain ? p.m : p.k, a_plain ? p.k : p.m, p.lda);
    init(&b_, p.type, b_plain ? p.k : p.n, b_plain ? p.n : p.k, p.ldb);
    init(&d_, p.out, p.m, p.n, p.ldd);
  }
  template <class T>
  void Set(cublasLtMatmulDescAttributes_t attribute, T value) {
    ASSERT_EQ(cublasLtMatmulDescSetAttribute(&desc_, attribute, &value, sizeof value),
              CUBLAS_STATUS_SUCCESS);
  }
  cublasStatus_t Heuristic(uint64_t workspace = 0, int* count = nullptr, uint32_t alignment = 256) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulPreferenceInit(&preference);
    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace, sizeof workspace);
    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                         &alignment, sizeof alignment);
    int returned = 0;
    const cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(handle_, &desc_, &a_, &b_, &d_, &d_,
                                                            &preference, 4, results_, &returned);
    if (count) *count = returned;
    return s;
  }
  cublasStatus_t Multiply(const void* a, const void* b, void* d, void* workspace = nullptr,
                          size_t bytes = 0, float beta = 0) {
    const float alpha = 1;
    return cublasLtMatmul(handle_, &desc_, &alpha, a, &a_, b, &b_, &beta, d, &d_, d, &d_,
                          &results_[0].algo, workspace, bytes, stream_);
  }
  std::vector<float> Random(size_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> v(n);
    for (float& x : v) x = normal(random_);
    return v;
  }

  cublasLtHandle_t handle_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cublasLtMatmulDescOpaque_t desc_;
  cublasLtMatrixLayoutOpaque_t a_, b_, d_;
  cublasLtMatmulHeuristicResult_t results_[4];
  std::mt19937 random_{3};
};

std::vector<__nv_bfloat16> ToBf16(const std::vector<float>& v) {
  std::vector<__nv_bfloat16> b(v.size());
  for (size_t i = 0; i < v.size(); ++i) b[i] = __float2bfloat16_rn(v[i]);
  return b;
}

TEST_F(CublasLtTest, Bf16AgreesWithDouble) {
  for (const auto& [m, n, k] :
       {std::array<uint64_t, 3>{64, 8, 128}, {33, 5, 17}, {130, 70, 300}, {1, 1, 1}}) {
    const int64_t lda = static_cast<int64_t>(k) + 3, ldb = static_cast<int64_t>(k) + 8;
    const int64_t ldd = static_cast<int64_t>(m) + 5;
    Describe({.m = m, .n = n, .k = k, .lda = lda, .ldb = ldb, .ldd = ldd});
    ASSERT_EQ(Heuristic(), CUBLAS_STATUS_SUCCESS);
    const auto w = ToBf16(Random(m * lda)), x = ToBf16(Random(n * ldb));
    auto* y = Device(std::vector<__nv_bfloat16>(n * ldd, __float2bfloat16_rn(7)));
    ASSERT_EQ(Multiply(Device(w), Device(x), y), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    std::vector<__nv_bfloat16> got(n * ldd);
    ASSERT_EQ(cudaMemcpy(got.data(), y, got.size() * 2, cudaMemcpyDeviceToHost), cudaSuccess);
    for (uint64_t j = 0; j < n; ++j) {
      for (uint64_t i = 0; i < m; ++i) {
        double sum = 0, size = 0;
        for (uint64_t t = 0; t < k; ++t) {
          const double term =
              double{__bfloat162float(w[i * lda + t])} * __bfloat162float(x[j * ldb + t]);
          sum += term;
          size += std::fabs(term);
        }
        // One rounding to bf16, and k of fp32.
        const double bound = std::fabs(sum) * 0x1p-8 + size * static_cast<double>(k) * 0x1p-24;
        ASSERT_NEAR(__bfloat162float(got[j * ldd + i]), sum, bound) << i << " " << j;
      }
      EXPECT_EQ(__bfloat162float(got[j * ldd + m]), 7) << "the padding is not touched";
    }
  }
}
TEST_F(CublasLtTest, Fp8ScalesByRowAndColumn) {
  const uint64_t m = 48, n = 5, k = 64;
  for (const bool vectors : {false, true}) {
    Describe({.type = CUDA_R_8F_E4M3,
              .out = CUDA_R_32F,
              .m = m,
              .n = n,
              .k = k,
              .scale_mode = vectors ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                    : CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F});
    std::vector<__nv_fp8_e4m3> w(m * k), x(n * k);
    for (auto& v : w) v = __nv_fp8_e4m3(static_cast<float>(random_() % 15) - 7);
    for (auto& v : x) v = __nv_fp8_e4m3(static_cast<float>(random_() % 15) - 7);
    std::vector<float> a_scale(m), b_scale(n);
    for (size_t i = 0; i < m; ++i) a_scale[i] = std::ldexp(1.0f, static_cast<int>(i % 5) - 2);
    for (size_t i = 0; i < n; ++i) b_scale[i] = std::ldexp(1.0f, static_cast<int>(i % 3));
    Set<const void*>(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, Device(a_scale));
    Set<const void*>(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, Device(b_scale));
    ASSERT_EQ(Heuristic(), CUBLAS_STATUS_SUCCESS);
    float* y = Device(std::vector<float>(m * n, 1));
    ASSERT_EQ(Multiply(Device(w), Device(x), y, nullptr, 0, 2.0f), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    std::vector<float> got(m * n);
    ASSERT_EQ(cudaMemcpy(got.data(), y, got.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    for (uint64_t j = 0; j < n; ++j) {
      for (uint64_t i = 0; i < m; ++i) {
        float sum = 0;  // exact
        for (uint64_t t = 0; t < k; ++t) sum += float(w[i * k + t]) * float(x[j * k + t]);
        const float scale = vectors ? a_scale[i] * b_scale[j] : a_scale[0] * b_scale[0];
        ASSERT_EQ(got[j * m + i], sum * scale + 2) << i << " " << j;
      }
    }
  }
}
TEST_F(CublasLtTest, RefusesFp8OutsideTheRules) {
  const Product good{.type = CUDA_R_8F_E4M3, .m = 64, .n = 3, .k = 64};
  Describe(good);
  EXPECT_EQ(Heuristic(), CUBLAS_STATUS_SUCCESS);
  auto refused = [&](Product p) {
    Describe(p);
    EXPECT_EQ(Heuristic(), CUBLAS_STATUS_NOT_SUPPORTED);
  };
  Product p = good;
  p.transpose_a = CUBLAS_OP_N;
  refused(p);
  p = good;
  p.transpose_b = CUBLAS_OP_T;
  p.n = 16;
  refused(p);
  p = good;
  p.k = 72;
  refused(p);
  p = good;
  p.m = 72;
  refused(p);
  p = good;
  p.lda = 68;
  refused(p);
  p = good;
  p.ldd = 68;
  refused(p);
  p = good;
  p.scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  refused(p);
  Describe(good);
  EXPECT_EQ(Heuristic(0, nullptr, 8), CUBLAS_STATUS_NOT_SUPPORTED) << "A only aligned to 8";
}
TEST_F(CublasLtTest, OuterVectorScalesAreHoppersAlone) {
  const char* cc = getenv("SIMT_CC");
  const int capability = cc ? atoi(cc) : 90;
  Describe({.type = CUDA_R_8F_E4M3, .scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F});
  if (capability == 90) {
    EXPECT_EQ(Heuristic(), CUBLAS_STATUS_INVALID_VALUE) << "no scales";
  }
  Set<const void*>(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &a_);
  Set<const void*>(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &b_);
  EXPECT_EQ(Heuristic(), capability == 90 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED);
  Describe({.type = CUDA_R_8F_E4M3});
  EXPECT_EQ(Heuristic(), capability >= 89 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED);
}
TEST_F(CublasLtTest, RefusesContradictions) {
  Describe({});
  a_ = {};
  ASSERT_EQ(cublasLtMatrixLayoutInit(&a_, CUDA_R_16BF, 64, 64, 64), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(Heuristic(), CUBLAS_STATUS_INVALID_VALUE) << "k is 64 here and 128 there";
  Describe({.lda = 100});
  EXPECT_EQ(Heuristic(), CUBLAS_STATUS_INVALID_VALUE) << "ld below rows";
  Describe({.out = CUDA_R_16F});
  EXPECT_EQ(Heuristic(), CUBLAS_STATUS_NOT_SUPPORTED);
  Describe({});
  Set<const void*>(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &a_);
  EXPECT_EQ(Heuristic(), CUBLAS_STATUS_INVALID_VALUE) << "bf16 has no scales";
  int64_t wrong_size = 0;
  EXPECT_EQ(cublasLtMatmulDescSetAttribute(&desc_, CUBLASLT_MATMUL_DESC_TRANSA, &wrong_size, 8),
            CUBLAS_STATUS_INVALID_VALUE);
}
TEST_F(CublasLtTest, WorkspaceIsWhatTheHeuristicSays) {
  Describe({.m = 64, .n = 8, .k = 2048});
  int count = 0;
  ASSERT_EQ(Heuristic(0, &count), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(count, 1);
  EXPECT_EQ(results_[0].workspaceSize, 0u);
  ASSERT_EQ(Heuristic(1 << 20, &count), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(count, 2);
  const size_t bytes = results_[0].workspaceSize;
  EXPECT_EQ(bytes, 64u * 8 * 4 * 2);
  auto* a = Device(std::vector<__nv_bfloat16>(64 * 2048));
  auto* b = Device(std::vector<__nv_bfloat16>(8 * 2048));
  auto* d = Device(std::vector<__nv_bfloat16>(64 * 8));
  EXPECT_EQ(Multiply(a, b, d, nullptr, 0), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Multiply(a, b, d, Device(std::vector<char>(bytes)), bytes), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  cublasLtMatmulHeuristicResult_t checked{};
  EXPECT_EQ(
      cublasLtMatmulAlgoCheck(handle_, &desc_, &a_, &b_, &d_, &d_, &results_[0].algo, &checked),
      CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(checked.workspaceSize, bytes);
  Describe({.type = CUDA_R_32F, .out = CUDA_R_32F});
  EXPECT_EQ(
      cublasLtMatmulAlgoCheck(handle_, &desc_, &a_, &b_, &d_, &d_, &results_[0].algo, &checked),
      CUBLAS_STATUS_NOT_SUPPORTED);
}
TEST_F(CublasLtTest, PointersMustBeAsAlignedAsPromised) {
  Describe({});
  ASSERT_EQ(Heuristic(), CUBLAS_STATUS_SUCCESS);
  auto* a = Device(std::vector<__nv_bfloat16>(64 * 128 + 8));
  auto* b = Device(std::vector<__nv_bfloat16>(8 * 128));
  auto* d = Device(std::vector<__nv_bfloat16>(64 * 8));
  EXPECT_EQ(Multiply(a + 1, b, d), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(Multiply(a + 8, b, d), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(Heuristic(0, nullptr, 2), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(Multiply(a + 1, b, d), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}
TEST_F(CublasLtTest, HostMemoryIsAFault) {
  Describe({});
  ASSERT_EQ(Heuristic(), CUBLAS_STATUS_SUCCESS);
  alignas(16) static __nv_bfloat16 host[64 * 128];
  auto* b = Device(std::vector<__nv_bfloat16>(8 * 128));
  auto* d = Device(std::vector<__nv_bfloat16>(64 * 8));
  EXPECT_EQ(Multiply(host, b, d), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);
}
TEST_F(CublasLtTest, IsRecordedInGraphs) {
  Describe({.type = CUDA_R_32F, .out = CUDA_R_32F, .m = 4, .n = 4, .k = 4});
  ASSERT_EQ(Heuristic(), CUBLAS_STATUS_SUCCESS);
  float* a = Device(std::vector<float>(16, 1));
  float* d = Device(std::vector<float>(16, 0));
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(Multiply(a, a, d, nullptr, 0, 1), CUBLAS_STATUS_SUCCESS);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  float got[16];
  ASSERT_EQ(cudaMemcpy(got, d, 64, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(got[7], 12);
}

}  // namespace
}  // namespace lapidary
