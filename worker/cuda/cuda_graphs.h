// Decode steps as CUDA graphs: recorded once for every padded size, then launched as one.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "worker/cuda/cuda_stream.h"

namespace lapidary {

class CudaGraphs {
 public:
  explicit CudaGraphs(CudaStream& stream) : stream_(stream) {}
  ~CudaGraphs();
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;

  // Padded sizes worth a graph: powers of two, then steps of 16 and 32, up to max_rows rounded up.
  static std::vector<int64_t> Buckets(int64_t max_rows);

  // Launches the graph of a size; false: there is none yet.
  bool Replay(int64_t bucket);
  // What is enqueued on the stream from here to EndRecording becomes the graph of that size, and
  // runs then.
  void BeginRecording(int64_t bucket);
  void EndRecording();
  bool recording() const { return recording_ > 0; }

 private:
  CudaStream& stream_;
  std::map<int64_t, cudaGraphExec_t> graphs_;
  int64_t recording_ = 0;  // the size
};

}  // namespace lapidary
