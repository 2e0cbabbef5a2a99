// A library as the CUDA worker is one: kernels, and the libraries they need, behind one C function.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <vector>

#include "kernels/simt/tests/block_sum_cuda.h"

// Sums `width` ones on the device, then over a communicator of one rank; < 0: an error.
extern "C" __attribute__((visibility("default"))) float SumOfOnes(int width) {
  using namespace lapidary;
  void *x = nullptr, *sum = nullptr;
  cudaStream_t stream = nullptr;
  const std::vector<float> ones(static_cast<size_t>(width), 1.0f);
  if (cudaMalloc(&x, ones.size() * 4) || cudaMalloc(&sum, 4) ||
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) ||
      cudaMemcpyAsync(x, ones.data(), ones.size() * 4, cudaMemcpyHostToDevice, stream)) {
    return -1;
  }
  BlockSumParams p;
  p.x = static_cast<const float*>(x);
  p.sum = static_cast<float*>(sum);
  p.rows = 1;
  p.width = width;
  if (LaunchBlockSum(p, stream)) return -2;
  ncclUniqueId id;
  ncclComm_t comm = nullptr;
  if (ncclGetUniqueId(&id) || ncclCommInitRank(&comm, 1, id, 0) ||
      ncclAllReduce(sum, sum, 1, ncclFloat32, ncclSum, comm, stream)) {
    return -3;
  }
  float result = -4;
  if (cudaStreamSynchronize(stream) || cudaMemcpy(&result, sum, 4, cudaMemcpyDeviceToHost) ||
      ncclCommDestroy(comm) || cudaStreamDestroy(stream) || cudaFree(x) || cudaFree(sum)) {
    return -5;
  }
  return result;
}
