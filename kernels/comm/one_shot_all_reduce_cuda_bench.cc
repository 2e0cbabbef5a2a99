// One-shot sums between the GPUs of one process, which must reach each other's memory: time by
// events of one of them, of many sums in a row. What crosses the links in is reported; there is no
// roof to compare it with, because waiting is what small messages are made of.
//
// Also compiled for the SIMT executor, where sums are fewer and times mean nothing.
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/comm/one_shot_all_reduce_cuda.h"
#include "kernels/device_bench_support.h"

namespace lapidary {
namespace {

// For the stand-in, which has one device unless asked.
[[maybe_unused]] const int kAsked = setenv("SIMT_DEVICES", "8", /*overwrite=*/0);

constexpr int kSums = kShrink == 1 ? 32 : 2;  // of an iteration

// Whether the first `size` GPUs may use each other's memory from now on.
bool EnablePeers(int size) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < size) return false;
  for (int d = 0; d < size; ++d) {
    for (int peer = 0; peer < size; ++peer) {
      int reaches = 0;
      if (peer == d) continue;
      if (cudaSetDevice(d) != cudaSuccess ||
          cudaDeviceCanAccessPeer(&reaches, d, peer) != cudaSuccess || reaches == 0) {
        return false;
      }
      const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
      if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled) return false;
      (void)cudaGetLastError();
    }
  }
  return true;
}

struct Rank {
  Rank(int device, int64_t bytes)
      : mailbox(sizeof(OneShotMailbox)), control(sizeof(OneShotControl)), data(bytes) {
    params.rank = device;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    cudaDeviceSynchronize();
  }
  ~Rank() {
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaStreamDestroy(stream);
  }
  const Zeros mailbox, control, data;
  OneShotParams params;
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
};

// Waits for all ranks at once, and not for one after another: the executor runs a rank's kernels on
// the thread that waits for them. Null, or what went wrong.
const char* Finish(const std::vector<std::unique_ptr<Rank>>& ranks) {
  std::atomic<bool> failed = false, silent = false;
  std::vector<std::thread> threads;
  for (const auto& rank : ranks) {
    threads.emplace_back([&, r = rank.get()] {
      OneShotControl control{};
      if (cudaSetDevice(r->params.rank) != cudaSuccess ||
          cudaEventSynchronize(r->end) != cudaSuccess ||
          cudaMemcpy(&control, r->params.control, sizeof(control), cudaMemcpyDeviceToHost) !=
              cudaSuccess) {
        failed = true;
      }
      if (control.silent != 0) silent = true;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failed ? "a sum failed" : silent ? "a rank did not answer" : nullptr;
}

// Arguments: GPUs, bytes of a message (bf16).
void BM_OneShotAllReduce(benchmark::State& state) {
  const int size = static_cast<int>(state.range(0));
  const int64_t bytes = state.range(1);
  if (!EnablePeers(size)) return state.SkipWithError("not so many GPUs that reach each other");
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int r = 0; r < size; ++r) {
    cudaSetDevice(r);
    ranks.push_back(std::make_unique<Rank>(r, bytes));
  }
  for (const auto& rank : ranks) {
    OneShotParams& p = rank->params;
    for (int r = 0; r < size; ++r) p.mailbox[r] = ranks[r]->mailbox.As<OneShotMailbox>();
    p.data = rank->data.As();
    p.count = bytes / 2;
    p.bf16 = true;
    p.size = size;
    p.control = rank->control.As<OneShotControl>();
    p.patience_ns = 10'000'000'000;
  }
  for ([[maybe_unused]] auto _ : state) {
    cudaError_t error = cudaSuccess;
    for (const auto& rank : ranks) {
      cudaSetDevice(rank->params.rank);
      cudaEventRecord(rank->begin, rank->stream);
      for (int i = 0; i < kSums && error == cudaSuccess; ++i) {
        error = LaunchOneShotAllReduce(rank->params, rank->stream);
      }
      cudaEventRecord(rank->end, rank->stream);
    }
    const char* const wrong = Finish(ranks);
    if (error != cudaSuccess || wrong != nullptr) {
      state.SkipWithError(error != cudaSuccess ? "a launch failed" : wrong);
      break;
    }
    // The last one began last: it has waited least for the host.
    float ms = 0;
    cudaSetDevice(ranks.back()->params.rank);
    cudaEventElapsedTime(&ms, ranks.back()->begin, ranks.back()->end);
    state.SetIterationTime(ms * 1e-3 / kSums);
  }
  using benchmark::Counter;
  state.counters["link_bytes_per_s"] =
      Counter(static_cast<double>((size - 1) * bytes), Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_OneShotAllReduce)
    ->ArgsProduct({{2, 4, 8}, {1 << 10, 8 << 10, 64 << 10, 512 << 10}})
    ->UseManualTime();

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
