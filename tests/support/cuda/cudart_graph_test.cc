// Capture and graphs of the CUDA runtime stand-in, and the errors of calls that a capture forbids.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "kernels/gpu.h"
#include "kernels/simt/policy.h"
#include "kernels/simt/report.h"

namespace lapidary {
namespace {

__global__ void Append(int* log, int v) {
  const int n = log[0]++;
  log[1 + n] = v;
}

class CudartGraphTest : public testing::Test {
 protected:
  void SetUp() override {
    for (cudaStream_t* s : {&a_, &b_}) {
      ASSERT_EQ(cudaStreamCreateWithFlags(s, cudaStreamNonBlocking), cudaSuccess);
    }
    for (cudaEvent_t* e : {&e_, &f_}) {
      ASSERT_EQ(cudaEventCreateWithFlags(e, cudaEventDisableTiming), cudaSuccess);
    }
    void* p = nullptr;
    ASSERT_EQ(cudaMalloc(&p, 256), cudaSuccess);
    log_ = static_cast<int*>(p);
    ASSERT_EQ(cudaMemset(log_, 0, 256), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  void TearDown() override {
    cudaDeviceReset();
    cudaGetLastError();
  }
  void Do(cudaStream_t s, int v) {
    ASSERT_EQ(
        gpu::Launch(Append, {.name = "append", .grid = dim3(1), .block = dim3(1), .stream = s},
                    log_, v),
        cudaSuccess);
  }
  std::vector<int> Log() {
    int host[64];
    EXPECT_EQ(cudaMemcpy(host, log_, 256, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(cudaMemset(log_, 0, 256), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return {host + 1, host + 1 + host[0]};
  }
  // Ends the capture and launches what was recorded, `times` times.
  void Launch(int times) {
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(a_, &graph), cudaSuccess);
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    for (int i = 0; i < times; ++i) ASSERT_EQ(cudaGraphLaunch(exec, a_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
    ASSERT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  }
  // The capture was spoilt by `call`.
  void Spoils(cudaError_t error, cudaError_t call) {
    EXPECT_EQ(call, error);
    cudaStreamCaptureStatus status{};
    ASSERT_EQ(cudaStreamIsCapturing(a_, &status), cudaSuccess);
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    EXPECT_EQ(gpu::Launch(Append, {.grid = dim3(1), .block = dim3(1), .stream = a_}, log_, 1),
              cudaErrorStreamCaptureInvalidated);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
    ASSERT_EQ(cudaStreamIsCapturing(a_, &status), cudaSuccess);
    EXPECT_EQ(status, cudaStreamCaptureStatusNone);
    Do(a_, 1);  // an ordinary stream again
    EXPECT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  }
  void Begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
    ASSERT_EQ(cudaStreamBeginCapture(a_, mode), cudaSuccess);
  }

  cudaStream_t a_ = nullptr, b_ = nullptr;
  cudaEvent_t e_ = nullptr, f_ = nullptr;
  int* log_ = nullptr;
};

TEST_F(CudartGraphTest, RecordsWithoutRunningAndReplays) {
  Begin();
  Do(a_, 1);
  Do(a_, 2);
  Launch(3);
  EXPECT_THAT(Log(), testing::ElementsAre(1, 2, 1, 2, 1, 2));
}
TEST_F(CudartGraphTest, CopiesReadPinnedMemoryAtTheLaunch) {
  void* p = nullptr;
  ASSERT_EQ(cudaHostAlloc(&p, 8, 0), cudaSuccess);
  int* pinned = static_cast<int*>(p);
  pinned[0] = 1;
  pinned[1] = 7;
  Begin();
  ASSERT_EQ(cudaMemcpyAsync(log_, pinned, 8, cudaMemcpyHostToDevice, a_), cudaSuccess);
  Do(a_, 2);
  pinned[1] = 8;
  Launch(1);
  EXPECT_THAT(Log(), testing::ElementsAre(8, 2));
}
TEST_F(CudartGraphTest, BranchesForkAndJoin) {
  const simt::Policy before = simt::CurrentPolicy();
  for (const auto order : {simt::Order::kForward, simt::Order::kReverse}) {
    simt::CurrentPolicy().order = order;
    Begin();
    Do(a_, 1);
    ASSERT_EQ(cudaEventRecord(e_, a_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(b_, e_, 0), cudaSuccess);
    Do(a_, 2);
    Do(b_, 3);
    ASSERT_EQ(cudaEventRecord(f_, b_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(a_, f_, 0), cudaSuccess);
    Do(a_, 4);
    Launch(1);
    // Branches are ordered by the fork and the join alone.
    if (order == simt::Order::kForward) {
      EXPECT_THAT(Log(), testing::ElementsAre(1, 2, 3, 4));
    } else {
      EXPECT_THAT(Log(), testing::ElementsAre(1, 3, 2, 4));
    }
  }
  simt::CurrentPolicy() = before;
}
TEST_F(CudartGraphTest, UnjoinedBranchesAreAnError) {
  Begin();
  Do(a_, 1);
  ASSERT_EQ(cudaEventRecord(e_, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b_, e_, 0), cudaSuccess);
  Do(b_, 2);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaErrorStreamCaptureUnjoined);
  Do(b_, 3);  // an ordinary stream again
  EXPECT_EQ(cudaStreamSynchronize(b_), cudaSuccess);
  EXPECT_THAT(Log(), testing::ElementsAre(3));
}
TEST_F(CudartGraphTest, GraphsNest) {
  Begin();
  Do(a_, 1);
  Do(a_, 2);
  cudaGraph_t inner = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(a_, &inner), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, inner, 0), cudaSuccess);
  Begin();
  Do(a_, 0);
  ASSERT_EQ(cudaGraphLaunch(exec, a_), cudaSuccess);
  Do(a_, 3);
  Launch(1);
  EXPECT_THAT(Log(), testing::ElementsAre(0, 1, 2, 3));
}

// -- What a capture forbids.

TEST_F(CudartGraphTest, AllocationSpoilsTheCapture) {
  void* p = nullptr;
  Begin();
  Spoils(cudaErrorStreamCaptureUnsupported, cudaMalloc(&p, 4));
}
TEST_F(CudartGraphTest, SynchronisingSpoilsTheCapture) {
  Begin();
  Spoils(cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(a_));
  Begin();
  Spoils(cudaErrorStreamCaptureUnsupported, cudaStreamQuery(a_));
  Begin();
  Spoils(cudaErrorStreamCaptureUnsupported, cudaDeviceSynchronize());
  int host = 0;
  Begin();
  Spoils(cudaErrorStreamCaptureUnsupported, cudaMemcpy(&host, log_, 4, cudaMemcpyDeviceToHost));
}
TEST_F(CudartGraphTest, PageableMemorySpoilsTheCapture) {
  int host = 0;
  Begin();
  Spoils(cudaErrorStreamCaptureUnsupported,
         cudaMemcpyAsync(log_, &host, 4, cudaMemcpyHostToDevice, a_));
}
TEST_F(CudartGraphTest, EventsFromOutsideSpoilTheCapture) {
  ASSERT_EQ(cudaEventRecord(e_, b_), cudaSuccess);
  Begin();
  Spoils(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(a_, e_, 0));
}
TEST_F(CudartGraphTest, LegacyStreamSpoilsTheCaptureOfABlockingStream) {
  ASSERT_EQ(cudaStreamCreate(&a_), cudaSuccess);
  Begin();
  Spoils(cudaErrorStreamCaptureImplicit, cudaMemsetAsync(log_, 0, 4, nullptr));
}
TEST_F(CudartGraphTest, EventsOfACaptureCannotBeAskedOutside) {
  Begin();
  ASSERT_EQ(cudaEventRecord(e_, a_), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(e_), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaEventSynchronize(e_), cudaErrorCapturedEvent);
  Launch(1);
}
TEST_F(CudartGraphTest, TwoCapturesDoNotMerge) {
  Begin();
  ASSERT_EQ(cudaStreamBeginCapture(b_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(e_, b_), cudaSuccess);
  Spoils(cudaErrorStreamCaptureMerge, cudaStreamWaitEvent(a_, e_, 0));
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(b_, &graph), cudaErrorStreamCaptureInvalidated);
}
TEST_F(CudartGraphTest, ModesSayWhoseCallsAreForbidden) {
  auto malloc_elsewhere = [] {
    cudaError_t error = cudaSuccess;
    std::thread([&] {
      void* p = nullptr;
      error = cudaMalloc(&p, 4);
    }).join();
    return error;
  };
  void* p = nullptr;
  Begin(cudaStreamCaptureModeThreadLocal);
  EXPECT_EQ(malloc_elsewhere(), cudaSuccess);
  Launch(1);
  Begin(cudaStreamCaptureModeRelaxed);
  EXPECT_EQ(cudaMalloc(&p, 4), cudaSuccess);
  Launch(1);
  Begin(cudaStreamCaptureModeThreadLocal);
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  ASSERT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&p, 4), cudaSuccess);
  ASSERT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  Launch(1);
  Begin(cudaStreamCaptureModeGlobal);
  Spoils(cudaErrorStreamCaptureUnsupported, malloc_elsewhere());
}
TEST_F(CudartGraphTest, CapturesBeginAndEndInTheirPlace) {
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal),
            cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaErrorIllegalState);
  Begin();
  EXPECT_EQ(cudaStreamBeginCapture(a_, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
  cudaError_t elsewhere = cudaSuccess;
  std::thread([&] { elsewhere = cudaStreamEndCapture(a_, &graph); }).join();
  EXPECT_EQ(elsewhere, cudaErrorStreamCaptureWrongThread);
  Launch(1);
}

}  // namespace
}  // namespace lapidary
