// The machines that the stand-in can pretend to be. Run with names and values of environment
// variables set, as CMakeLists.txt does: what is expected follows from them.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace {

int Environment(const char* name, int otherwise) {
  const char* v = getenv(name);
  return v ? atoi(v) : otherwise;
}

TEST(CudartMachines, WithoutADriverEverythingFailsWith35) {
  if (!Environment("SIMT_NO_DRIVER", 0)) GTEST_SKIP() << "SIMT_NO_DRIVER is not set";
  int n = 77;
  void* p = nullptr;
  cudaStream_t s = nullptr;
  cudaFuncAttributes a{};
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaErrorInsufficientDriver);
  EXPECT_EQ(n, 77) << "the real library leaves it unwritten";
  EXPECT_EQ(cudaMalloc(&p, 4), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaMallocHost(&p, 4), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaStreamCreate(&s), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaFuncGetAttributes(&a, &n), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaSetDevice(0), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaDriverGetVersion(&n), cudaSuccess);
  EXPECT_EQ(n, 0);
  EXPECT_EQ(cudaRuntimeGetVersion(&n), cudaSuccess);
  EXPECT_EQ(n, CUDART_VERSION);
}

TEST(CudartMachines, WithoutADevice) {
  if (Environment("SIMT_DEVICES", 1) != 0) GTEST_SKIP() << "there are devices";
  int n = 77;
  void* p = nullptr;
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaErrorNoDevice);
  EXPECT_EQ(n, 0);
  EXPECT_EQ(cudaMalloc(&p, 4), cudaErrorNoDevice);
}

TEST(CudartMachines, SeveralDevicesHaveTheirOwnMemoryAndSeeEachOther) {
  const int devices = Environment("SIMT_DEVICES", 1);
  if (devices < 2 || Environment("SIMT_NO_DRIVER", 0)) GTEST_SKIP() << "one device at most";
  int n = 0, can = 0;
  ASSERT_EQ(cudaGetDeviceCount(&n), cudaSuccess);
  EXPECT_EQ(n, devices);
  ASSERT_EQ(cudaDeviceCanAccessPeer(&can, 0, 1), cudaSuccess);
  EXPECT_EQ(can, 1);
  EXPECT_EQ(cudaDeviceEnablePeerAccess(1, 0), cudaSuccess);
  EXPECT_EQ(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
  EXPECT_EQ(cudaDeviceEnablePeerAccess(0, 0), cudaErrorInvalidDevice);
  size_t free0 = 0, free1 = 0, total = 0;
  void *p = nullptr, *q = nullptr;
  ASSERT_EQ(cudaMalloc(&p, 1 << 20), cudaSuccess);
  ASSERT_EQ(cudaMemset(p, 5, 4), cudaSuccess);
  ASSERT_EQ(cudaMemGetInfo(&free0, &total), cudaSuccess);
  EXPECT_EQ(total, static_cast<size_t>(Environment("SIMT_DEVICE_MEM_MB", 2048)) << 20);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  ASSERT_EQ(cudaMemGetInfo(&free1, &total), cudaSuccess);
  EXPECT_EQ(free0 + (1 << 20), free1);
  ASSERT_EQ(cudaMalloc(&q, 4), cudaSuccess);
  int host = 0;
  ASSERT_EQ(cudaMemcpyPeer(q, 1, p, 0, 4), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(&host, q, 4, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(host, 0x05050505);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
}

TEST(CudartMachines, TheChipIsTheOneAskedFor) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) GTEST_SKIP() << "no device";
  const int capability = Environment("SIMT_CC", 90);
  int major = 0, minor = 0, optin = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
            cudaSuccess);
  EXPECT_EQ(major * 10 + minor, capability);
  EXPECT_EQ(optin, (capability == 80                        ? 163
                    : capability == 90 || capability == 100 ? 227
                                                            : 99)
                       << 10);
}

}  // namespace
