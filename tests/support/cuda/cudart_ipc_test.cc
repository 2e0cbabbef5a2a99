// Device memory of one process in another.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "tests/support/cuda/self_spawn.h"

namespace lapidary {
namespace {

constexpr int kCount = 3000;

std::string Text(const cudaIpcMemHandle_t& handle) {
  return std::string(handle.reserved, sizeof handle.reserved);
}
cudaIpcMemHandle_t HandleOf(const std::string& bytes) {
  cudaIpcMemHandle_t handle;
  std::memcpy(handle.reserved, bytes.data(), sizeof handle.reserved);
  return handle;
}

#define OR_RETURN(condition, code) \
  if (!(condition)) return code

// Opens the memory, finds 0, 1, 2 ..., and leaves 1, 2, 3 ...
int OpenAndCount(const cudaIpcMemHandle_t& handle) {
  void *p = nullptr, *again = nullptr;
  OR_RETURN(cudaIpcOpenMemHandle(&p, handle, 0) == cudaErrorInvalidValue, 10);
  const cudaError_t opened = cudaIpcOpenMemHandle(&p, handle, cudaIpcMemLazyEnablePeerAccess);
  OR_RETURN(opened == cudaSuccess, opened == cudaErrorMapBufferObjectFailed ? 1 : 11);
  OR_RETURN(cudaIpcOpenMemHandle(&again, handle, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess,
            12);
  std::vector<int> values(kCount);
  OR_RETURN(cudaMemcpy(values.data(), p, kCount * 4, cudaMemcpyDeviceToHost) == cudaSuccess, 13);
  for (int i = 0; i < kCount; ++i) OR_RETURN(values[i]++ == i, 14);
  OR_RETURN(cudaMemcpy(p, values.data(), kCount * 4, cudaMemcpyHostToDevice) == cudaSuccess, 15);
  OR_RETURN(cudaDeviceSynchronize() == cudaSuccess, 15);  // it may still be on its way
  cudaIpcMemHandle_t own;
  OR_RETURN(cudaIpcGetMemHandle(&own, p) == cudaErrorInvalidValue, 16);
  OR_RETURN(cudaFree(p) == cudaErrorInvalidValue, 17);
  OR_RETURN(cudaIpcCloseMemHandle(p) == cudaSuccess, 18);
  OR_RETURN(cudaIpcCloseMemHandle(p) == cudaErrorInvalidValue, 19);
  return 0;
}

int InAnotherProcess(const cudaIpcMemHandle_t& handle) {
  return ExitCode(SpawnSelf({{"LAPIDARY_HANDLE", ToHex(Text(handle))}}));
}

class CudartIpcTest : public testing::Test {
 protected:
  void SetUp() override {
    std::iota(values_.begin(), values_.end(), 0);
    ASSERT_EQ(cudaMalloc(&p_, kCount * 4), cudaSuccess);
    ASSERT_EQ(cudaMemcpy(p_, values_.data(), kCount * 4, cudaMemcpyHostToDevice), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // it may still be on its way
  }
  void* p_ = nullptr;
  std::vector<int> values_ = std::vector<int>(kCount);
};

TEST_F(CudartIpcTest, TwoProcessesShareWhatWasThere) {
  cudaIpcMemHandle_t handle, again;
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, p_), cudaSuccess);
  ASSERT_EQ(cudaIpcGetMemHandle(&again, p_), cudaSuccess);
  EXPECT_EQ(Text(handle), Text(again));
  EXPECT_EQ(InAnotherProcess(handle), 0);
  ASSERT_EQ(cudaMemcpy(values_.data(), p_, kCount * 4, cudaMemcpyDeviceToHost), cudaSuccess);
  for (int i = 0; i < kCount; ++i) ASSERT_EQ(values_[i], i + 1);
  EXPECT_EQ(cudaFree(p_), cudaSuccess);
}
TEST_F(CudartIpcTest, WhatIsFreedCannotBeOpened) {
  cudaIpcMemHandle_t handle;
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, p_), cudaSuccess);
  ASSERT_EQ(cudaFree(p_), cudaSuccess);
  EXPECT_EQ(InAnotherProcess(handle), 1);
}
TEST_F(CudartIpcTest, OnlyTheBeginningOfDeviceMemoryIsOffered) {
  cudaIpcMemHandle_t handle;
  void* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 64), cudaSuccess);
  EXPECT_EQ(cudaIpcGetMemHandle(&handle, static_cast<char*>(p_) + 256), cudaErrorInvalidValue);
  EXPECT_EQ(cudaIpcGetMemHandle(&handle, pinned), cudaErrorInvalidValue);
  EXPECT_EQ(cudaIpcGetMemHandle(&handle, &handle), cudaErrorInvalidValue);
  EXPECT_EQ(cudaIpcCloseMemHandle(p_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaFree(p_), cudaSuccess);
}
TEST_F(CudartIpcTest, OnesOwnAndNonsenseAreNotOpened) {
  cudaIpcMemHandle_t handle, nonsense{};
  void* opened = nullptr;
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, p_), cudaSuccess);
  EXPECT_EQ(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
            cudaErrorDeviceUninitialized);
  EXPECT_EQ(cudaIpcOpenMemHandle(&opened, nonsense, cudaIpcMemLazyEnablePeerAccess),
            cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaFree(p_), cudaSuccess);
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  if (const char* handle = getenv("LAPIDARY_HANDLE")) {
    return lapidary::OpenAndCount(lapidary::HandleOf(lapidary::FromHex(handle)));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
