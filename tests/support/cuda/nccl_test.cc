// The NCCL stand-in with ranks as threads of one process, each on a device of its own where there
// are enough.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

namespace lapidary {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Rank {
  int rank = 0, ranks = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;

  template <class T>
  T* Device(const std::vector<T>& v) const {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, v.size() * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);  // it may still be on its way
    return static_cast<T*>(p);
  }
  template <class T>
  std::vector<T> Host(const T* p, size_t n) const {
    std::vector<T> v(n);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return v;
  }
  ncclResult_t AsyncError() const {
    ncclResult_t error = ncclSuccess;
    EXPECT_EQ(ncclCommGetAsyncError(comm, &error), ncclSuccess);
    return error;
  }
};

// f runs once per rank, each on a thread.
void OnRanks(int ranks, const std::function<void(Rank&)>& f) {
  int devices = 0;
  ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      Rank rank{r, ranks};
      ASSERT_EQ(cudaSetDevice(r % devices), cudaSuccess);
      ASSERT_EQ(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking), cudaSuccess);
      ASSERT_EQ(ncclCommInitRank(&rank.comm, ranks, id, r), ncclSuccess);
      f(rank);
      if (rank.comm) {
        EXPECT_EQ(ncclCommDestroy(rank.comm), ncclSuccess);
      }
      EXPECT_EQ(cudaStreamDestroy(rank.stream), cudaSuccess);
    });
  }
  for (auto& t : threads) t.join();
}

std::vector<float> Pattern(size_t n, int rank) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<float>(i % 97) + static_cast<float>(rank);
  return v;
}

TEST(Nccl, AllReduceSumsAndFindsTheLargest) {
  for (const int ranks : {1, 2, 4}) {
    for (const size_t n : {size_t{1}, size_t{1000}, size_t{150001}}) {
      OnRanks(ranks, [&](Rank& r) {
        float* p = r.Device(Pattern(n, r.rank));
        float* q = r.Device(std::vector<float>(n));
        ASSERT_EQ(ncclAllReduce(p, q, n, ncclFloat32, ncclSum, r.comm, r.stream), ncclSuccess);
        ASSERT_EQ(ncclAllReduce(p, p, n, ncclFloat32, ncclMax, r.comm, r.stream), ncclSuccess);
        const auto sum = r.Host(q, n), most = r.Host(p, n);
        for (size_t i = 0; i < n; ++i) {
          const int base = static_cast<int>(i % 97);
          ASSERT_EQ(sum[i], base * ranks + ranks * (ranks - 1) / 2) << i;
          ASSERT_EQ(most[i], base + ranks - 1) << i;
        }
      });
    }
  }
}
TEST(Nccl, Bf16IsRoundedAfterEachAddition) {
  OnRanks(3, [&](Rank& r) {
    // 256 + 1 + 1: each addition is lost in bf16; summed in fp32 it would be 258.
    const float v = r.rank == 0 ? 256.0f : 1.0f;
    __nv_bfloat16* p = r.Device(std::vector<__nv_bfloat16>(5, __float2bfloat16(v)));
    ASSERT_EQ(ncclAllReduce(p, p, 5, ncclBfloat16, ncclSum, r.comm, r.stream), ncclSuccess);
    EXPECT_EQ(__bfloat162float(r.Host(p, 5)[4]), 256.0f);
  });
}
TEST(Nccl, GathersScattersBroadcasts) {
  constexpr size_t kCount = 70000;  // more than one chunk
  OnRanks(3, [&](Rank& r) {
    float* all = r.Device(std::vector<float>(3 * kCount));
    float* own = r.Device(Pattern(kCount, 100 * r.rank));
    ASSERT_EQ(ncclAllGather(own, all, kCount, ncclFloat32, r.comm, r.stream), ncclSuccess);
    const auto gathered = r.Host(all, 3 * kCount);
    for (int from = 0; from < 3; ++from) {
      ASSERT_EQ(gathered[from * kCount + 69999], Pattern(kCount, 100 * from)[69999]) << from;
    }
    ASSERT_EQ(ncclReduceScatter(all, own, kCount, ncclFloat32, ncclSum, r.comm, r.stream),
              ncclSuccess);
    EXPECT_EQ(r.Host(own, kCount)[50000], 3 * gathered[r.rank * kCount + 50000]);
    ASSERT_EQ(ncclBroadcast(own, own, kCount, ncclFloat32, 1, r.comm, r.stream), ncclSuccess);
    EXPECT_EQ(r.Host(own, kCount)[50000], 3 * gathered[kCount + 50000]);
  });
}
TEST(Nccl, AllToAllInAGroup) {
  constexpr size_t kCount = 30000;
  OnRanks(4, [&](Rank& r) {
    float* in = r.Device(std::vector<float>(4 * kCount, static_cast<float>(r.rank)));
    float* out = r.Device(std::vector<float>(4 * kCount));
    ASSERT_EQ(ncclGroupStart(), ncclSuccess);
    for (int peer = 0; peer < 4; ++peer) {
      const size_t at = static_cast<size_t>(peer) * kCount;
      ASSERT_EQ(ncclSend(in + at, kCount, ncclFloat32, peer, r.comm, r.stream), ncclSuccess);
      ASSERT_EQ(ncclRecv(out + at, kCount, ncclFloat32, peer, r.comm, r.stream), ncclSuccess);
    }
    ASSERT_EQ(ncclGroupEnd(), ncclSuccess);
    const auto got = r.Host(out, 4 * kCount);
    for (int peer = 0; peer < 4; ++peer) EXPECT_EQ(got[peer * kCount + kCount - 1], peer);
  });
}
TEST(Nccl, CollectivesAreRecordedInGraphs) {
  OnRanks(2, [&](Rank& r) {
    float* p = r.Device(std::vector<float>(10, 1));
    ASSERT_EQ(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(ncclAllReduce(p, p, 10, ncclFloat32, ncclSum, r.comm, r.stream), ncclSuccess);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(r.stream, &graph), cudaSuccess);
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(exec, r.stream), cudaSuccess);
    EXPECT_EQ(r.Host(p, 10)[9], 8);
    EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  });
}
TEST(Nccl, OneThreadMayHoldAllRanks) {
  int devices = 0;
  ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  std::vector<ncclComm_t> comms(static_cast<size_t>(devices));
  ASSERT_EQ(ncclCommInitAll(comms.data(), devices, nullptr), ncclSuccess);
  std::vector<cudaStream_t> streams(comms.size());
  std::vector<void*> data(comms.size());
  ASSERT_EQ(ncclGroupStart(), ncclSuccess);
  for (int d = 0; d < devices; ++d) {
    cudaSetDevice(d);
    ASSERT_EQ(cudaStreamCreateWithFlags(&streams[d], cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&data[d], 4), cudaSuccess);
    const int one = 1;
    ASSERT_EQ(cudaMemcpyAsync(data[d], &one, 4, cudaMemcpyHostToDevice, streams[d]), cudaSuccess);
    ASSERT_EQ(ncclAllReduce(data[d], data[d], 1, ncclInt32, ncclSum, comms[d], streams[d]),
              ncclSuccess);
  }
  ASSERT_EQ(ncclGroupEnd(), ncclSuccess);
  for (int d = 0; d < devices; ++d) {
    cudaSetDevice(d);
    int sum = 0;
    ASSERT_EQ(cudaStreamSynchronize(streams[d]), cudaSuccess);
    ASSERT_EQ(cudaMemcpy(&sum, data[d], 4, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(sum, devices);
    EXPECT_EQ(ncclCommDestroy(comms[d]), ncclSuccess);
  }
  cudaSetDevice(0);
}

// -- What goes wrong.

TEST(Nccl, ArgumentsAreChecked) {
  OnRanks(1, [&](Rank& r) {
    float* p = r.Device(std::vector<float>(4));
    float host[4] = {};
    EXPECT_EQ(ncclAllReduce(host, host, 4, ncclFloat32, ncclSum, r.comm, r.stream),
              ncclInvalidArgument);
    EXPECT_THAT(ncclGetLastError(nullptr), testing::HasSubstr("device memory"));
    EXPECT_EQ(ncclAllReduce(p, p, 5, ncclFloat32, ncclSum, r.comm, r.stream), ncclInvalidArgument);
    EXPECT_EQ(ncclBroadcast(p, p, 4, ncclFloat32, 1, r.comm, r.stream), ncclInvalidArgument);
    EXPECT_EQ(ncclSend(p, 4, ncclFloat32, 1, r.comm, r.stream), ncclInvalidArgument);
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
    ncclComm_t other = nullptr;
    ncclUniqueId id;
    ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    EXPECT_EQ(ncclCommInitRank(&other, 1, id, 1), ncclInvalidArgument);
    ncclConfig_t zeros{};
    EXPECT_EQ(ncclCommInitRankConfig(&other, 1, id, 0, &zeros), ncclInvalidArgument);
    ASSERT_EQ(ncclCommInitRank(&other, 1, id, 0), ncclSuccess);
    EXPECT_EQ(ncclCommInitRank(&other, 1, id, 0), ncclSystemError) << "an id serves once";
  });
}
TEST(Nccl, DifferentCollectivesAreReported) {
  int devices = 0;
  ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  std::atomic<int> reported{0};
  OnRanks(2, [&](Rank& r) {
    float* p = r.Device(std::vector<float>(8));
    const ncclResult_t called =
        r.rank == 0 ? ncclAllReduce(p, p, 8, ncclFloat32, ncclSum, r.comm, r.stream)
                    : ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r.comm, r.stream);
    ASSERT_EQ(called, ncclSuccess);
    EXPECT_NE(cudaStreamSynchronize(r.stream), cudaSuccess);
    // Who looks second may find the first gone already, or, on one device, its own operation ended.
    if (r.AsyncError() == ncclInvalidUsage) {
      EXPECT_THAT(ncclGetLastError(r.comm), testing::HasSubstr("elements, rank"));
      ++reported;
    } else if (r.AsyncError() != ncclRemoteError) {
      EXPECT_EQ(r.AsyncError(), ncclSuccess);
      EXPECT_EQ(devices, 1);
    }
    while (true) {  // both have seen it before the device is made well again
      static std::atomic<int> seen{0};
      static std::atomic<bool> once[2];
      if (!once[r.rank].exchange(true)) ++seen;
      if (seen == 2) break;
      std::this_thread::yield();
    }
    cudaDeviceReset();
  });
  EXPECT_GE(reported, 1);
}
TEST(Nccl, ANonBlockingCommunicatorIsPolled) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 0;
      Rank r{rank, 2};
      ASSERT_EQ(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking), cudaSuccess);
      float* p = r.Device(std::vector<float>(3, 1));
      if (rank == 1) std::this_thread::sleep_for(milliseconds(20));
      EXPECT_EQ(ncclCommInitRankConfig(&r.comm, 2, id, rank, &config), ncclInProgress);
      if (rank == 0) {
        EXPECT_EQ(r.AsyncError(), ncclInProgress);
        EXPECT_EQ(ncclAllReduce(p, p, 3, ncclFloat32, ncclSum, r.comm, r.stream), ncclInvalidUsage);
      }
      while (r.AsyncError() == ncclInProgress) std::this_thread::yield();
      ASSERT_EQ(r.AsyncError(), ncclSuccess);
      EXPECT_EQ(ncclAllReduce(p, p, 3, ncclFloat32, ncclSum, r.comm, r.stream), ncclInProgress);
      while (r.AsyncError() == ncclInProgress) std::this_thread::yield();
      EXPECT_EQ(r.Host(p, 3)[2], 2);
      EXPECT_EQ(ncclCommFinalize(r.comm), ncclInProgress);
      while (r.AsyncError() == ncclInProgress) std::this_thread::yield();
      EXPECT_EQ(ncclCommDestroy(r.comm), ncclSuccess);
    });
  }
  for (auto& t : threads) t.join();
}
TEST(Nccl, AnOperationHangsUntilAnotherThreadAborts) {
  OnRanks(2, [&](Rank& r) {
    if (r.rank == 1) return;  // destroys its communicator: gone
    float* p = r.Device(std::vector<float>(4));
    ASSERT_EQ(ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r.comm, r.stream), ncclSuccess);
    const auto begin = steady_clock::now();
    while (r.AsyncError() == ncclSuccess) {
      ASSERT_LT(steady_clock::now() - begin, std::chrono::seconds(5));
      EXPECT_EQ(cudaStreamQuery(r.stream), cudaErrorNotReady);
    }
    EXPECT_EQ(r.AsyncError(), ncclRemoteError);
    EXPECT_EQ(ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r.comm, r.stream), ncclRemoteError);
    std::atomic<bool> returned{false};
    std::thread waiter([&] {
      EXPECT_EQ(cudaStreamSynchronize(r.stream), cudaSuccess);
      returned = true;
    });
    std::this_thread::sleep_for(milliseconds(20));
    EXPECT_FALSE(returned);
    // Other work of this and other threads goes on meanwhile.
    cudaStream_t other = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaMemsetAsync(p, 0, 4, other), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(other), cudaSuccess);
    ASSERT_EQ(ncclCommAbort(r.comm), ncclSuccess);
    waiter.join();
    r.comm = nullptr;
  });
}
TEST(Nccl, SettingUpCanBeAborted) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  ASSERT_EQ(ncclCommInitRankConfig(&comm, 2, id, 0, &config), ncclInProgress);
  EXPECT_EQ(ncclCommAbort(comm), ncclSuccess);  // rank 1 never comes
}

}  // namespace
}  // namespace lapidary
