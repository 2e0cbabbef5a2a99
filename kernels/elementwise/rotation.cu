// The rotation table of a step: one thread for each token and pair, about 30 instructions and 8
// bytes written. Small beside everything else.
#include "kernels/elementwise/rotation.h"
#include "kernels/elementwise/row_ops_cuda.h"
#include "kernels/gpu.h"

namespace lapidary {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    RotationKernel(const __grid_constant__ RotationParams p) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t token = at / p.pairs;
  const int pair = static_cast<int>(at % p.pairs);
  if (token >= p.tokens) return;
  const SinCos turned = SinCosOfAngle(static_cast<float>(p.positions[token]) * p.frequency[pair]);
  float* row = p.cos_sin + token * 2 * p.pairs;
  row[pair] = turned.cosine;
  row[p.pairs + pair] = turned.sine;
}

}  // namespace

cudaError_t LaunchRotation(const RotationParams& p, cudaStream_t stream) {
  constexpr int64_t kMaxAngles = int64_t{0x7fffffff} * kThreads;
  if (p.tokens < 0 || p.pairs <= 0 || p.tokens > kMaxAngles / p.pairs) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "rotation";
  config.grid = dim3(static_cast<unsigned>((p.tokens * p.pairs + kThreads - 1) / kThreads));
  config.block = dim3(kThreads);
  config.stream = stream;
  return gpu::Launch(RotationKernel, config, p);
}

}  // namespace lapidary
