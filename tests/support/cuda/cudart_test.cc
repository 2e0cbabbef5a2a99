// The CUDA runtime stand-in: is it as strict as the real one, and as lazy as it may be?
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/gpu.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/policy.h"
#include "kernels/simt/report.h"
#include "tests/support/cuda/cudart_protection.h"
#include "tests/support/cuda/runtime.h"

namespace lapidary {
namespace {

__global__ void Fill(int* p, int n, int v) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) p[i] = v;
}
__global__ void Add(int* p, const int* q, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) p[i] += q[i];
}

class CudartTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  void TearDown() override {
    cudaDeviceReset();
    cudaGetLastError();
  }
  static int* Device(size_t n, int value = 0) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, n * sizeof(int)), cudaSuccess);
    EXPECT_EQ(cudaMemset(p, value, n * sizeof(int)), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return static_cast<int*>(p);
  }
  static int* Pinned(size_t n) {
    void* p = nullptr;
    EXPECT_EQ(cudaHostAlloc(&p, n * sizeof(int), cudaHostAllocMapped), cudaSuccess);
    return static_cast<int*>(p);
  }
  static cudaStream_t Stream(unsigned flags = cudaStreamNonBlocking) {
    cudaStream_t s = nullptr;
    EXPECT_EQ(cudaStreamCreateWithFlags(&s, flags), cudaSuccess);
    return s;
  }
  static cudaEvent_t Event(unsigned flags = cudaEventDisableTiming) {
    cudaEvent_t e = nullptr;
    EXPECT_EQ(cudaEventCreateWithFlags(&e, flags), cudaSuccess);
    return e;
  }
  static cudaError_t LaunchFill(int* p, int n, int v, cudaStream_t s) {
    return gpu::Launch(Fill, {.name = "fill", .grid = dim3(1), .block = dim3(64), .stream = s}, p,
                       n, v);
  }
  static std::vector<int> Read(const int* p, size_t n) {
    std::vector<int> v(n);
    EXPECT_EQ(cudaMemcpy(v.data(), p, n * sizeof(int), cudaMemcpyDeviceToHost), cudaSuccess);
    return v;
  }
};
using CudartDeathTest = CudartTest;

// -- Memory.

TEST_F(CudartDeathTest, HostCodeCannotTouchDeviceMemory) {
  int* p = Device(4);
  EXPECT_DEATH({ *static_cast<volatile int*>(p) = 1; }, "host code touches .*byte 0 of device");
  EXPECT_DEATH(
      {
        volatile int v = p[3];
        (void)v;
      },
      "byte 12 of device memory of 16 bytes");
}
TEST_F(CudartDeathTest, FreedMemoryIsGone) {
  int* p = Device(4);
  ASSERT_EQ(cudaFree(p), cudaSuccess);
  EXPECT_DEATH({ *static_cast<volatile int*>(p) = 1; }, "freed|use-after-poison");
  EXPECT_EQ(cudaFree(p), cudaErrorInvalidValue);
}
TEST_F(CudartDeathTest, OtherThreadsCannotTouchDeviceMemoryWhileWorkRuns) {
  if (!standin::ProtectsThreads()) GTEST_SKIP() << "no memory protection keys";
  EXPECT_DEATH(
      {
        int* p = Device(4);
        std::atomic<bool> inside{false};
        const cudaStream_t s = Stream();
        standin::EnqueueTask(s, "long work", [&] {
          inside = true;
          std::this_thread::sleep_for(std::chrono::seconds(20));
        });
        std::thread waiter([&] { cudaStreamSynchronize(s); });
        while (!inside) std::this_thread::yield();
        *static_cast<volatile int*>(p) = 1;
      },
      "host code touches");
}
TEST_F(CudartTest, KernelBehindAnAllocationIsAnIllegalAddress) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer ends the process";
#endif
  int* p = Device(64);
  simt::FailureCapture capture;
  const cudaStream_t s = Stream();
  ASSERT_EQ(LaunchFill(p + 64, 64, 1, s), cudaSuccess);
  const cudaError_t error = cudaStreamSynchronize(s);
  EXPECT_TRUE(error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure) << error;
  // Sticky: nothing works any more.
  void* q = nullptr;
  EXPECT_EQ(cudaMalloc(&q, 4), error);
  EXPECT_EQ(LaunchFill(p, 1, 1, s), error);
  EXPECT_EQ(cudaGetLastError(), error);
  EXPECT_EQ(cudaGetLastError(), error);
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&q, 4), cudaSuccess);
}
TEST_F(CudartTest, MemoryRunsOut) {
  size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, free + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(p, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "not sticky";
  ASSERT_EQ(cudaMalloc(&p, 1 << 20), cudaSuccess);
  size_t now = 0;
  ASSERT_EQ(cudaMemGetInfo(&now, &total), cudaSuccess);
  EXPECT_EQ(now, free - (1 << 20));
}
TEST_F(CudartTest, NewMemoryHoldsNaN) {
  void* p = nullptr;
  ASSERT_EQ(cudaMalloc(&p, 8), cudaSuccess);
  EXPECT_THAT(Read(static_cast<int*>(p), 2), testing::Each(-1));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 256, 0u);
}
TEST_F(CudartTest, TheCheckerKnowsWhatCopiesHaveWritten) {
  if (!simt::Checked()) GTEST_SKIP() << "only the checker sees it";
  void *p = nullptr, *q = nullptr;
  ASSERT_EQ(cudaMalloc(&p, 256), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&q, 256), cudaSuccess);
  int* out = Device(64);
  const std::vector<int> host(48, 1);
  auto add = [&] {
    simt::FailureCapture capture;
    EXPECT_EQ(gpu::Launch(Add, {.grid = dim3(1), .block = dim3(64)}, out, static_cast<int*>(q), 64),
              cudaSuccess);
    cudaDeviceSynchronize();
    return capture.Take();
  };
  // 48 of 64 are written, then copied on: the last 16 are not.
  ASSERT_EQ(cudaMemcpy(p, host.data(), 192, cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(q, p, 256, cudaMemcpyDeviceToDevice, nullptr), cudaSuccess);
  EXPECT_THAT(add(), testing::Contains(testing::HasSubstr("nobody has written, at 192 of 256")));
  cudaDeviceReset();
  ASSERT_EQ(cudaMalloc(&q, 256), cudaSuccess);
  out = Device(64);
  ASSERT_EQ(cudaMemsetAsync(q, 0, 256, nullptr), cudaSuccess);
  EXPECT_THAT(add(), testing::IsEmpty());
}
TEST_F(CudartTest, CopiesCheckDirectionAndRange) {
  int* d = Device(4);
  int* pinned = Pinned(4);
  int host[4] = {1, 2, 3, 4};
  EXPECT_EQ(cudaMemcpy(d, host, 16, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, d, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(d, pinned, 16, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(d, host, 20, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(d + 2, host, 12, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(d, 0, 17), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(d, host, 16, static_cast<cudaMemcpyKind>(9)),
            cudaErrorInvalidMemcpyDirection);
  EXPECT_EQ(cudaMemcpy(d, host, 16, cudaMemcpyDefault), cudaSuccess);
  EXPECT_THAT(Read(d, 4), testing::ElementsAre(1, 2, 3, 4));
}
TEST_F(CudartTest, CopiesRowsWithPitch) {
  int* d = Device(12, 0);
  const int host[6] = {1, 2, 3, 4, 5, 6};
  ASSERT_EQ(cudaMemcpy2D(d, 16, host, 8, 8, 3, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_THAT(Read(d, 12), testing::ElementsAre(1, 2, 0, 0, 3, 4, 0, 0, 5, 6, 0, 0));
  EXPECT_EQ(cudaMemcpy2D(d, 4, host, 8, 8, 3, cudaMemcpyHostToDevice), cudaErrorInvalidPitchValue);
  EXPECT_EQ(cudaMemcpy2D(d, 24, host, 8, 8, 3, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
}
TEST_F(CudartTest, PinnedMemoryIsMapped) {
  int* p = Pinned(64);
  void* device = nullptr;
  ASSERT_EQ(cudaHostGetDevicePointer(&device, p, 0), cudaSuccess);
  ASSERT_EQ(LaunchFill(static_cast<int*>(device), 64, 9, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(p[63], 9);
  int stack = 0;
  EXPECT_EQ(cudaHostGetDevicePointer(&device, &stack, 0), cudaErrorInvalidValue);
  std::vector<int> registered(1024);
  ASSERT_EQ(cudaHostRegister(registered.data(), 4096, cudaHostRegisterMapped), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(registered.data(), 4096, 0), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(cudaHostUnregister(registered.data()), cudaSuccess);
  EXPECT_EQ(cudaHostUnregister(registered.data()), cudaErrorHostMemoryNotRegistered);
  cudaPointerAttributes a{};
  ASSERT_EQ(cudaPointerGetAttributes(&a, p), cudaSuccess);
  EXPECT_EQ(a.type, cudaMemoryTypeHost);
  ASSERT_EQ(cudaPointerGetAttributes(&a, Device(1)), cudaSuccess);
  EXPECT_EQ(a.type, cudaMemoryTypeDevice);
  EXPECT_EQ(cudaFreeHost(p), cudaSuccess);
}

// -- Streams and events.

TEST_F(CudartTest, NothingRunsBeforeSomebodyWaits) {
  int* d = Device(64);
  int* h = Pinned(64);
  h[0] = -5;
  const cudaStream_t s = Stream();
  ASSERT_EQ(LaunchFill(d, 64, 3, s), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(h, d, 256, cudaMemcpyDeviceToHost, s), cudaSuccess);
  EXPECT_EQ(h[0], -5);
  ASSERT_EQ(cudaStreamSynchronize(s), cudaSuccess);
  EXPECT_EQ(h[0], 3);
}
// Looks without asking the runtime: a race, and meant to be one.
__attribute__((no_sanitize("thread"))) int Peek(const int* p) {
  return *static_cast<const volatile int*>(p);
}
TEST_F(CudartTest, EverythingHappensInTheEnd) {
  int* d = Device(64);
  int* h = Pinned(64);
  h[0] = -5;
  const cudaStream_t s = Stream();
  ASSERT_EQ(LaunchFill(d, 64, 3, s), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(h, d, 256, cudaMemcpyDeviceToHost, s), cudaSuccess);
  while (Peek(h) != 3) std::this_thread::yield();
}
TEST_F(CudartTest, PinnedSourcesAreReadWhenTheCopyRuns) {
  int* d = Device(1);
  int* h = Pinned(1);
  const cudaStream_t s = Stream();
  h[0] = 1;
  ASSERT_EQ(cudaMemcpyAsync(d, h, 4, cudaMemcpyHostToDevice, s), cudaSuccess);
  h[0] = 2;  // too early
  ASSERT_EQ(cudaStreamSynchronize(s), cudaSuccess);
  EXPECT_EQ(Read(d, 1)[0], 2);
  int pageable = 3;
  ASSERT_EQ(cudaMemcpyAsync(d, &pageable, 4, cudaMemcpyHostToDevice, s), cudaSuccess);
  pageable = 4;  // was staged
  ASSERT_EQ(cudaStreamSynchronize(s), cudaSuccess);
  EXPECT_EQ(Read(d, 1)[0], 3);
}
TEST_F(CudartTest, ACopyFromPageableMemoryMayArriveAfterTheCall) {
  int* d = Device(64);
  int* h = Pinned(64);
  const cudaStream_t s = Stream();
  ASSERT_EQ(LaunchFill(d, 64, 1, s), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(s), cudaSuccess);
  const std::vector<int> pageable(64, 2);
  ASSERT_EQ(cudaMemcpy(d, pageable.data(), 256, cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(h, d, 256, cudaMemcpyDeviceToHost, s), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(s), cudaSuccess);
  EXPECT_EQ(h[0], 1) << "the stream does not wait for the default one";
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(Read(d, 1)[0], 2);
}
TEST_F(CudartTest, EventsOrderStreams) {
  int* d = Device(64);
  const cudaStream_t a = Stream(), b = Stream();
  const cudaEvent_t e = Event();
  ASSERT_EQ(LaunchFill(d, 64, 1, a), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(e, a), cudaSuccess);
  ASSERT_EQ(LaunchFill(d, 64, 2, a), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b, e, 0), cudaSuccess);
  ASSERT_EQ(gpu::Launch(Add, {.grid = dim3(1), .block = dim3(64), .stream = b}, d, d, 64),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(b), cudaSuccess);  // 1 + 1, the second fill has not run
  ASSERT_EQ(cudaStreamSynchronize(a), cudaSuccess);
  EXPECT_EQ(Read(d, 1)[0], 2);
  EXPECT_EQ(cudaEventQuery(e), cudaSuccess);
}
TEST_F(CudartTest, QueriesLetWorkRun) {
  int* d = Device(64);
  const cudaStream_t s = Stream();
  const cudaEvent_t e = Event();
  for (int i = 0; i < 3; ++i) ASSERT_EQ(LaunchFill(d, 64, i, s), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(e, s), cudaSuccess);
  int asked = 0;
  while (cudaEventQuery(e) == cudaErrorNotReady) ++asked;
  EXPECT_GT(asked, 0);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "not ready is no error";
  EXPECT_EQ(cudaStreamQuery(s), cudaSuccess);
}
TEST_F(CudartTest, LegacyStreamAndBlockingStreamsWaitForEachOther) {
  int* d = Device(64);
  const cudaStream_t blocking = Stream(cudaStreamDefault);
  ASSERT_EQ(LaunchFill(d, 64, 1, blocking), cudaSuccess);
  ASSERT_EQ(LaunchFill(d, 64, 2, nullptr), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(Read(d, 1)[0], 2);
  ASSERT_EQ(LaunchFill(d, 64, 3, nullptr), cudaSuccess);
  ASSERT_EQ(LaunchFill(d, 64, 4, blocking), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(blocking), cudaSuccess);
  EXPECT_EQ(Read(d, 1)[0], 4);
}
TEST_F(CudartTest, EventsMeasureTime) {
  const cudaStream_t s = Stream();
  const cudaEvent_t from = Event(cudaEventDefault), to = Event(cudaEventDefault);
  float ms = -1;
  EXPECT_EQ(cudaEventElapsedTime(&ms, from, to), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(cudaEventRecord(from, s), cudaSuccess);
  standin::EnqueueTask(s, "two milliseconds",
                       [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
  ASSERT_EQ(cudaEventRecord(to, s), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&ms, from, to), cudaErrorNotReady);
  ASSERT_EQ(cudaEventSynchronize(to), cudaSuccess);
  ASSERT_EQ(cudaEventElapsedTime(&ms, from, to), cudaSuccess);
  EXPECT_GE(ms, 2);
  EXPECT_EQ(cudaEventElapsedTime(&ms, from, Event()), cudaErrorInvalidResourceHandle);
}
TEST_F(CudartTest, HostFunctionsMayCallNothing) {
  struct Seen {
    std::atomic<int> error{-1};
  } seen;
  const cudaStream_t s = Stream();
  ASSERT_EQ(cudaLaunchHostFunc(
                s,
                [](void* data) {
                  void* p = nullptr;
                  static_cast<Seen*>(data)->error = cudaMalloc(&p, 4);
                },
                &seen),
            cudaSuccess);
  while (seen.error == -1) std::this_thread::yield();  // runs though nobody waits
  EXPECT_EQ(seen.error, cudaErrorNotPermitted);
}
TEST_F(CudartTest, HandlesDie) {
  const cudaStream_t s = Stream();
  int* d = Device(64);
  ASSERT_EQ(LaunchFill(d, 64, 7, s), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(s), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(s), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamSynchronize(s), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(Read(d, 1)[0], 7) << "what was queued has run";
  const cudaEvent_t e = Event();
  ASSERT_EQ(cudaEventDestroy(e), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(e, nullptr), cudaErrorInvalidResourceHandle);
}
TEST_F(CudartTest, AStreamThatHangsDoesNotHoldOthers) {
  class Hang : public standin::Work {
   public:
    explicit Hang(std::atomic<bool>* go_on) : go_on_(go_on) {}
    bool Run() override { return *go_on_; }

   private:
    std::atomic<bool>* go_on_;
  };
  std::atomic<bool> go_on{false};
  const cudaStream_t hanging = Stream(), other = Stream();
  int* d = Device(64);
  standin::Enqueue(hanging, "hangs", [&] { return std::make_unique<Hang>(&go_on); });
  std::thread waiter([&] { EXPECT_EQ(cudaStreamSynchronize(hanging), cudaSuccess); });
  for (int i = 0; i < 10; ++i) {
    ASSERT_EQ(LaunchFill(d, 64, i, other), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(other), cudaSuccess);
    EXPECT_EQ(cudaStreamQuery(hanging), cudaErrorNotReady);
  }
  go_on = true;
  waiter.join();
}

// -- Launches.

TEST_F(CudartTest, LaunchesAreChecked) {
  int* d = Device(64);
  auto launch = [&](dim3 grid, dim3 block, size_t shared) {
    return gpu::Launch(Fill, {.grid = grid, .block = block, .shared_bytes = shared}, d, 64, 1);
  };
  EXPECT_EQ(launch(dim3(0), dim3(64), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1), dim3(1025), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1), dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1, 65536), dim3(1), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1), dim3(64), 300 << 10), cudaErrorInvalidValue);
  EXPECT_EQ(launch(dim3(1), dim3(64), 200 << 10), cudaSuccess);
  int blocks = 0;
  const void* function = reinterpret_cast<const void*>(&Add);
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, 128, 0), cudaSuccess);
  EXPECT_EQ(blocks, 8);  // 64 registers a thread assumed
}

// -- Devices, versions, errors.

TEST_F(CudartTest, DescribesItsChip) {
  int major = 0, minor = 0, optin = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
            cudaSuccess);
  EXPECT_EQ(major * 10 + minor, 90);
  EXPECT_EQ(optin, 227 << 10);
  cudaDeviceProp p{};
  EXPECT_EQ(cudaGetDeviceProperties(&p, 1), cudaErrorInvalidDevice);
  ASSERT_EQ(cudaGetDeviceProperties(&p, 0), cudaSuccess);
  EXPECT_EQ(p.multiProcessorCount, 132);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
}
TEST_F(CudartTest, ErrorsHaveTheirNames) {
  EXPECT_STREQ(cudaGetErrorName(cudaErrorStreamCaptureUnjoined), "cudaErrorStreamCaptureUnjoined");
  EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
  EXPECT_STREQ(cudaGetErrorName(static_cast<cudaError_t>(12345)), "unrecognized error code");
}

}  // namespace
}  // namespace lapidary
