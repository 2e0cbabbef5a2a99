#include "worker/cuda/cuda_graphs.h"

#include <algorithm>

namespace lapidary {

CudaGraphs::~CudaGraphs() {
  for (const auto& entry : graphs_) (void)cudaGraphExecDestroy(entry.second);
}

std::vector<int64_t> CudaGraphs::Buckets(int64_t max_rows) {
  constexpr int64_t kMost = 512;
  std::vector<int64_t> buckets;
  for (int64_t size = 1; buckets.empty() || buckets.back() < std::min(max_rows, kMost);) {
    buckets.push_back(size);
    size += size < 16 ? size : size < 128 ? 16 : 32;
  }
  return buckets;
}

bool CudaGraphs::Replay(int64_t bucket) {
  const auto found = graphs_.find(bucket);
  if (found == graphs_.end()) return false;
  stream_.Check("recorded step", cudaGraphLaunch(found->second, stream_.raw()));
  return true;
}

void CudaGraphs::BeginRecording(int64_t bucket) {
  stream_.Check("recording a step",
                cudaStreamBeginCapture(stream_.raw(), cudaStreamCaptureModeThreadLocal));
  recording_ = bucket;
}

void CudaGraphs::EndRecording() {
  cudaGraph_t graph = nullptr;
  stream_.Check("recording a step", cudaStreamEndCapture(stream_.raw(), &graph));
  const int64_t bucket = std::exchange(recording_, 0);
  if (graph == nullptr || !stream_.failed().ok()) {
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    return;
  }
  cudaGraphExec_t exec = nullptr;
  stream_.Check("recording a step", cudaGraphInstantiate(&exec, graph, 0));
  (void)cudaGraphDestroy(graph);
  if (exec == nullptr) return;
  graphs_[bucket] = exec;
  Replay(bucket);
}

}  // namespace lapidary
