// One-shot sums between the GPUs of one process, which must reach each other's memory: time by
// events of one of them, of many sums in a row. What crosses the links in is reported; there is no
// roof to compare it with, because waiting is what small messages are made of.
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/comm/one_shot_all_reduce_cuda.h"
#include "kernels/device_bench_support.h"

namespace lapidary {
namespace {

constexpr int kSums = 32;  // of an iteration

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
  for (auto _ : state) {
    cudaError_t error = cudaSuccess;
    for (const auto& rank : ranks) {
      cudaSetDevice(rank->params.rank);
      cudaEventRecord(rank->begin, rank->stream);
      for (int i = 0; i < kSums && error == cudaSuccess; ++i) {
        error = LaunchOneShotAllReduce(rank->params, rank->stream);
      }
      cudaEventRecord(rank->end, rank->stream);
    }
    // The last one began last: it has waited least for the host.
    float ms = 0;
    for (const auto& rank : ranks) {
      cudaSetDevice(rank->params.rank);
      if (cudaEventSynchronize(rank->end) != cudaSuccess) error = cudaErrorUnknown;
      cudaEventElapsedTime(&ms, rank->begin, rank->end);
    }
    if (error != cudaSuccess) {
      state.SkipWithError("a launch failed");
      break;
    }
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
