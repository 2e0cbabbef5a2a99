#include "worker/cuda/cuda_stream.h"

#include <gtest/gtest.h>

#include <vector>

#include "absl/time/clock.h"
#include "worker/cuda/cuda_memory.h"

namespace lapidary {
namespace {

std::unique_ptr<CudaStream> NewStream() {
  auto stream = CudaStream::Create();
  EXPECT_TRUE(stream.ok()) << stream.status();
  return *std::move(stream);
}

TEST(CudaStream, ErrandsRunWhenTheirMarkIsPassed) {
  const auto stream = NewStream();
  std::vector<int> ran;
  const auto note = [&ran](int n) {
    return [&ran, n] {
      ran.push_back(n);
      return absl::OkStatus();
    };
  };
  stream->WhenPassed(note(1));
  const uint64_t first = stream->Record();
  stream->WhenPassed(note(2));
  const uint64_t second = stream->Record();
  EXPECT_TRUE(ran.empty());
  EXPECT_TRUE(stream->Wait(first).ok());
  EXPECT_EQ(ran, std::vector<int>({1}));
  stream->WhenPassed(note(3));  // no mark behind it
  EXPECT_TRUE(stream->Wait(second).ok());
  EXPECT_EQ(ran, std::vector<int>({1, 2}));
  EXPECT_TRUE(stream->Synchronize().ok());
  EXPECT_EQ(ran, std::vector<int>({1, 2, 3}));
}

TEST(CudaStream, TheResultIsThereWhenTheErrandRuns) {
  const auto stream = NewStream();
  auto pinned = PinnedBuffer::Allocate(4, "a number");
  auto device = DeviceBuffer::Allocate(4, "a number");
  ASSERT_TRUE(pinned.ok() && device.ok());
  stream->Check("set", cudaMemsetAsync(device->data(), 7, 4, stream->raw()));
  stream->Check("copy", cudaMemcpyAsync(pinned->data(), device->data(), 4, cudaMemcpyDeviceToHost,
                                        stream->raw()));
  uint32_t seen = 0;
  stream->WhenPassed([&] {
    seen = *pinned->data<uint32_t>();
    return absl::OkStatus();
  });
  ASSERT_TRUE(stream->Wait(stream->Record()).ok());
  EXPECT_EQ(seen, 0x07070707u);
}

TEST(CudaStream, StampsAscendAndLieBetweenTheCalls) {
  const auto stream = NewStream();
  const auto before = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point a, b;
  stream->Stamp(&a);
  ASSERT_TRUE(stream->Wait(stream->Record()).ok());
  stream->Stamp(&b);
  ASSERT_TRUE(stream->Synchronize().ok());
  EXPECT_LE(a, b);
  // A time is a sum of steps in milliseconds of fp32, from when the stream was made.
  EXPECT_GT(a, before - std::chrono::seconds(1));
  EXPECT_LT(b, std::chrono::steady_clock::now() + std::chrono::milliseconds(50));
}

TEST(CudaStream, AnErrorSticksUntilSynchronize) {
  const auto stream = NewStream();
  bool ran = false;
  stream->WhenPassed([&ran] {
    ran = true;
    return absl::OkStatus();
  });
  stream->Check("rms_norm", cudaErrorInvalidValue);
  const uint64_t mark = stream->Record();
  const absl::Status failed = stream->Wait(mark);
  EXPECT_EQ(failed.code(), absl::StatusCode::kInternal);
  EXPECT_NE(failed.message().find("rms_norm"), std::string::npos) << failed;
  EXPECT_FALSE(ran);  // nobody may read what was not computed
  EXPECT_FALSE(stream->Synchronize().ok());
  EXPECT_TRUE(stream->Synchronize().ok());
}

TEST(CudaStream, HostFunctionsRunInOrderAndStopAtAnError) {
  const auto stream = NewStream();
  std::vector<int> ran;
  for (int i = 0; i < 3; ++i) {
    stream->Enqueue([&ran, i] {
      ran.push_back(i);
      return i == 1 ? absl::DataLossError("second") : absl::OkStatus();
    });
  }
  EXPECT_EQ(stream->Synchronize().message(), "second");
  EXPECT_EQ(ran, std::vector<int>({0, 1}));
}

TEST(CudaMemory, AFullDeviceSaysForWhatAndHowMuch) {
  const auto huge = DeviceBuffer::Allocate(int64_t{1} << 50, "the moon");
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(huge.status().message().find("the moon"), std::string::npos) << huge.status();
  EXPECT_TRUE(DeviceBuffer::Allocate(1024, "less").ok());  // the device is none the worse
}

}  // namespace
}  // namespace lapidary
