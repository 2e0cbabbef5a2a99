// Sums against a plain loop in the same order, ranks being threads with a device each. Tests whose
// ranks wait for one another are skipped where devices are too few: nothing promises that kernels
// of two streams of one device run side by side.
//
// What this cannot show: that a device sees another's message whenever it sees its word. Under
// emulation the threads share one coherent memory, and the checker does not look at memory that
// several devices use.
#include "kernels/comm/one_shot_all_reduce_cuda.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>

#include "kernels/device_test_support.h"
#include "kernels/test_devices.h"

namespace lapidary {
namespace {

// For the stand-in, where a device does one thing at a time.
[[maybe_unused]] const int kAsked = setenv("SIMT_DEVICES", "4", /*overwrite=*/0);

constexpr uint64_t kForEver = 3'600'000'000'000;

// Zeroed host memory that all devices reach.
template <class T>
struct Mapped {
  Mapped() {
    void* p = nullptr;
    EXPECT_EQ(cudaHostAlloc(&p, sizeof(T), cudaHostAllocMapped | cudaHostAllocPortable),
              cudaSuccess);
    std::memset(p, 0, sizeof(T));
    host = static_cast<T*>(p);
  }
  ~Mapped() { EXPECT_EQ(cudaFreeHost(host), cudaSuccess); }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  T* Device() const {
    void* p = nullptr;
    EXPECT_EQ(cudaHostGetDevicePointer(&p, host, 0), cudaSuccess);
    return static_cast<T*>(p);
  }
  T* host = nullptr;
};

// Mailboxes, and a thread for each rank. What needs the device's attention (allocating, freeing) is
// done before and after: a kernel that waits for another rank would hold it up.
class Group {
 public:
  explicit Group(int size) : size_(size), mailboxes_(size), controls_(size) {
    EXPECT_EQ(cudaGetDeviceCount(&devices_), cudaSuccess);
    for (int r = 0; r < size; ++r) {
      EXPECT_EQ(UseDevice(r), cudaSuccess);
      streams_.push_back(std::make_unique<TestStream>());
    }
  }
  cudaError_t UseDevice(int rank) const { return cudaSetDevice(rank % devices_); }
  OneShotParams Params(int rank) const {
    OneShotParams p;
    for (int r = 0; r < size_; ++r) p.mailbox[r] = mailboxes_[r].Device();
    p.rank = rank;
    p.size = size_;
    p.control = controls_[rank].Device();
    p.patience_ns = kForEver;
    return p;
  }
  OneShotControl& control(int rank) { return *controls_[rank].host; }
  cudaStream_t stream(int rank) const { return *streams_[rank]; }
  // fn(rank), with the rank's device current, then its stream is waited for.
  void OnAllRanks(const std::function<void(int)>& fn) const {
    std::vector<std::thread> threads;
    for (int r = 0; r < size_; ++r) {
      threads.emplace_back([&, r] {
        EXPECT_EQ(UseDevice(r), cudaSuccess);
        fn(r);
        EXPECT_EQ(cudaStreamSynchronize(stream(r)), cudaSuccess);
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(UseDevice(0), cudaSuccess);
  }

 private:
  const int size_;
  int devices_ = 1;
  std::vector<Mapped<OneShotMailbox>> mailboxes_;
  std::vector<Mapped<OneShotControl>> controls_;
  std::vector<std::unique_ptr<TestStream>> streams_;
};

float Plus(float a, float b) { return a + b; }
// In fp32, rounded by whoever has it all.
__nv_bfloat16 Rounded(float v, __nv_bfloat16) { return Bf16(v); }
float Rounded(float v, float) { return v; }
std::vector<float> Random(int64_t count, uint32_t seed, float) {
  return RandomFloats(count, 1, seed);
}
std::vector<__nv_bfloat16> Random(int64_t count, uint32_t seed, __nv_bfloat16) {
  return RandomBf16(count, 1, seed);
}

template <class T>
class OneShotAllReduce : public testing::Test {};
using Numbers = testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(OneShotAllReduce, Numbers);

// Sums of several sizes right behind one another, so that mailboxes are used again at once.
TYPED_TEST(OneShotAllReduce, GivesAllRanksTheSumInTheOrderOfRanks) {
  using T = TypeParam;
  LAPIDARY_NEEDS_DEVICES(4);
  constexpr int64_t kMost = kOneShotMaxBytes / sizeof(T);
  const std::vector<int64_t> counts = {8, 5376, 1032, kMost, 2 * 4112, 8, kMost - 24};
  for (const int size : {2, 3, 4}) {
    Group group(size);
    std::vector<std::vector<std::vector<T>>> values(counts.size());  // [sum][rank]
    std::vector<std::vector<std::unique_ptr<DeviceArray<T>>>> data(counts.size());
    for (size_t i = 0; i < counts.size(); ++i) {
      for (int r = 0; r < size; ++r) {
        ASSERT_EQ(group.UseDevice(r), cudaSuccess);
        values[i].push_back(Random(counts[i], static_cast<uint32_t>(10 * i + r), T{}));
        data[i].push_back(std::make_unique<DeviceArray<T>>(values[i][r]));
      }
    }
    group.OnAllRanks([&](int rank) {
      OneShotParams p = group.Params(rank);
      p.bf16 = sizeof(T) == 2;
      for (size_t i = 0; i < counts.size(); ++i) {
        p.data = data[i][rank]->data();
        p.count = counts[i];
        ASSERT_EQ(LaunchOneShotAllReduce(p, group.stream(rank)), cudaSuccess);
      }
    });
    for (size_t i = 0; i < counts.size(); ++i) {
      std::vector<float> sum(counts[i]);
      for (int r = 0; r < size; ++r) {
        for (int64_t j = 0; j < counts[i]; ++j) sum[j] = Plus(sum[j], Float(values[i][r][j]));
      }
      for (int r = 0; r < size; ++r) {
        ASSERT_EQ(group.UseDevice(r), cudaSuccess);
        const std::vector<T> got = data[i][r]->Get();
        for (int64_t j = 0; j < counts[i]; ++j) {
          ASSERT_EQ(Float(got[j]), Float(Rounded(sum[j], T{})))
              << "sum " << i << ", rank " << r << " of " << size << ", element " << j;
        }
      }
    }
  }
}

TEST(OneShotAllReduce, ARecordedSumIsAnotherOneEachTime) {
  LAPIDARY_NEEDS_DEVICES(2);
  constexpr int kSize = 2, kTimes = 5;
  Group group(kSize);
  std::vector<std::unique_ptr<DeviceArray<float>>> data;
  std::vector<cudaGraphExec_t> recorded(kSize);
  for (int r = 0; r < kSize; ++r) {
    ASSERT_EQ(group.UseDevice(r), cudaSuccess);
    data.push_back(std::make_unique<DeviceArray<float>>(std::vector<float>(4096, 1.0f + r)));
    OneShotParams p = group.Params(r);
    p.data = data[r]->data();
    p.count = 4096;
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(group.stream(r), cudaStreamCaptureModeThreadLocal),
              cudaSuccess);
    ASSERT_EQ(LaunchOneShotAllReduce(p, group.stream(r)), cudaSuccess);
    ASSERT_EQ(cudaStreamEndCapture(group.stream(r), &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&recorded[r], graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
  group.OnAllRanks([&](int rank) {
    for (int i = 0; i < kTimes; ++i) {
      ASSERT_EQ(cudaGraphLaunch(recorded[rank], group.stream(rank)), cudaSuccess);
    }
  });
  for (int r = 0; r < kSize; ++r) {
    ASSERT_EQ(group.UseDevice(r), cudaSuccess);
    for (const float v : data[r]->Get()) ASSERT_EQ(v, 3.0f * 16) << "rank " << r;
    ASSERT_EQ(cudaGraphExecDestroy(recorded[r]), cudaSuccess);
  }
}

TEST(OneShotAllReduce, ARankThatStaysAwayIsGivenUp) {
  LAPIDARY_NEEDS_DEVICES(1);
  Group group(3);
  DeviceArray<float> data(std::vector<float>(1024, 1));
  ASSERT_EQ(group.UseDevice(1), cudaSuccess);
  DeviceArray<float> others(std::vector<float>(1024, 1));
  ASSERT_EQ(group.UseDevice(0), cudaSuccess);
  group.OnAllRanks([&](int rank) {
    if (rank == 2) return;
    OneShotParams p = group.Params(rank);
    p.data = rank == 0 ? data.data() : others.data();
    p.count = 1024;
    p.patience_ns = 50'000'000;
    ASSERT_EQ(LaunchOneShotAllReduce(p, group.stream(rank)), cudaSuccess);
    // The one behind it waits no more.
    p.patience_ns = kForEver;
    ASSERT_EQ(LaunchOneShotAllReduce(p, group.stream(rank)), cudaSuccess);
  });
  for (const int rank : {0, 1}) {
    EXPECT_EQ(group.control(rank).silent, 3u) << "rank " << rank;
    EXPECT_EQ(group.control(rank).stop, 1u) << "rank " << rank;
  }
}

TEST(OneShotAllReduce, TheHostEndsTheWait) {
  LAPIDARY_NEEDS_DEVICES(1);
  Group group(2);
  DeviceArray<float> data(std::vector<float>(1024, 1));
  std::thread host;
  group.OnAllRanks([&](int rank) {
    if (rank == 1) return;
    OneShotParams p = group.Params(rank);
    p.data = data.data();
    p.count = 1024;
    ASSERT_EQ(LaunchOneShotAllReduce(p, group.stream(rank)), cudaSuccess);
    host = std::thread([&] { std::atomic_ref<uint32_t>(group.control(0).stop).store(1); });
  });
  host.join();
  EXPECT_EQ(group.control(0).silent, 0u);
}

TEST(OneShotAllReduce, RefusesWhatItDoesNotTake) {
  LAPIDARY_NEEDS_DEVICES(1);
  DeviceArray<float> data(64);
  OneShotParams good;
  good.data = data.data();
  good.count = 64;
  good.size = 2;
  const auto refused = [&](const std::function<void(OneShotParams&)>& change) {
    OneShotParams p = good;
    change(p);
    return LaunchOneShotAllReduce(p, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused([](OneShotParams& p) { p.count = 0; }));
  EXPECT_TRUE(refused([](OneShotParams& p) { p.count = -4; }));
  EXPECT_TRUE(refused([](OneShotParams& p) { p.count = 7; }));
  EXPECT_TRUE(refused([](OneShotParams& p) { p.count = kOneShotMaxBytes / 4 + 4; }));
  EXPECT_TRUE(refused([](OneShotParams& p) { p.data = static_cast<float*>(p.data) + 1; }));
  EXPECT_TRUE(refused([](OneShotParams& p) { p.size = kOneShotRanks + 1; }));
  EXPECT_TRUE(refused([](OneShotParams& p) { p.rank = 2; }));
}

}  // namespace
}  // namespace lapidary
