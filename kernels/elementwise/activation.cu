// Activations: the gates over what they gate, the soft cap, and rounding. A thread takes 8 outputs.
//
// Bytes per output: GatedGelu reads 4 and writes 2, about 25 instructions in 6 bytes; GateEmbedding
// reads 6 and writes 2; SoftCap reads and writes 4; RoundRows reads 4 and writes 2. Memory is the
// limit: H100 executes one warp instruction per 3.6 bytes read, so 32 outputs of GatedGelu may
// take 53.
#include "kernels/elementwise/gelu.h"
#include "kernels/elementwise/row_ops_cuda.h"
#include "kernels/elementwise/row_team.h"

namespace lapidary {
namespace {

constexpr int kThreads = 256;

// Rows along x, of which there are many; blocks of columns along y.
gpu::LaunchConfig UnitGrid(const char* name, int64_t rows, int64_t columns, cudaStream_t stream) {
  gpu::LaunchConfig config;
  config.name = name;
  const int64_t per_block = kThreads * kUnit;
  config.grid = dim3(static_cast<unsigned>(rows),
                     static_cast<unsigned>((columns + per_block - 1) / per_block));
  config.block = dim3(kThreads);
  config.stream = stream;
  return config;
}
constexpr int64_t kMaxColumns = int64_t{65535} * kThreads * kUnit;

GPU_DEVICE int FirstOfUnit() {
  return static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kUnit;
}

struct GatedGeluKernelParams {
  GatedGeluParams p;
  bool in_aligned, out_aligned;
};

__global__ void __launch_bounds__(kThreads)
    GatedGeluKernel(const __grid_constant__ GatedGeluKernelParams k) {
  const GatedGeluParams& p = k.p;
  const int64_t row = blockIdx.x;
  const int first = FirstOfUnit();
  const int width = static_cast<int>(p.width), out_stride = static_cast<int>(p.out_stride);
  if (first >= out_stride) return;
  Unit y{};
  if (first < width) {
    const __nv_bfloat16* in = p.gate_up + row * p.in_stride + 2 * int64_t{first};
    const Unit gate = LoadUnit(in, 0, kUnit, k.in_aligned);
    const Unit up = LoadUnit(in + kUnit, 0, kUnit, k.in_aligned);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      y.v[i] = first + i < width ? GeluTanh(gate.v[i]) * up.v[i] : 0.0f;
    }
  }
  StoreUnit(p.out + row * p.out_stride, first, out_stride, k.out_aligned, y);
}

struct GateEmbeddingKernelParams {
  GateEmbeddingParams p;
  bool gate_aligned, ple_aligned, out_aligned;
};

__global__ void __launch_bounds__(kThreads)
    GateEmbeddingKernel(const __grid_constant__ GateEmbeddingKernelParams k) {
  const GateEmbeddingParams& p = k.p;
  const int64_t row = blockIdx.x;
  const int first = FirstOfUnit();
  const int dim = static_cast<int>(p.dim), out_stride = static_cast<int>(p.out_stride);
  if (first >= out_stride) return;
  Unit y{};
  if (first < dim) {
    const Unit gate = LoadUnit(p.gate + row * p.gate_stride, first, dim, k.gate_aligned);
    const Unit ple = LoadUnit(p.ple + row * p.ple_stride + p.first, first, dim, k.ple_aligned);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) y.v[i] = GeluTanh(gate.v[i]) * ple.v[i];
  }
  StoreUnit(p.out + row * p.out_stride, first, out_stride, k.out_aligned, y);
}

struct SoftCapKernelParams {
  SoftCapParams p;
  bool aligned;
};

__global__ void __launch_bounds__(kThreads)
    SoftCapKernel(const __grid_constant__ SoftCapKernelParams k) {
  const SoftCapParams& p = k.p;
  const int first = FirstOfUnit(), dim = static_cast<int>(p.dim);
  if (first >= dim) return;
  float* row = p.x + blockIdx.x * p.stride;
  Unit y = LoadUnit(row, first, dim, k.aligned);
#pragma unroll
  for (int i = 0; i < kUnit; ++i) y.v[i] = p.cap * tanhf(y.v[i] / p.cap);
  StoreUnit(row, first, dim, k.aligned, y);
}

struct RoundRowsKernelParams {
  RoundRowsParams p;
  bool x_aligned, y_aligned;
};

__global__ void __launch_bounds__(kThreads)
    RoundRowsKernel(const __grid_constant__ RoundRowsKernelParams k) {
  const RoundRowsParams& p = k.p;
  const int64_t row = blockIdx.x;
  const int first = FirstOfUnit();
  const int dim = static_cast<int>(p.dim), y_stride = static_cast<int>(p.y_stride);
  if (first >= y_stride) return;
  const Unit x = LoadUnit(p.x + row * p.x_stride, first, dim, k.x_aligned);
  StoreUnit(p.y + row * p.y_stride, first, y_stride, k.y_aligned, x);
}

}  // namespace

cudaError_t LaunchGatedGelu(const GatedGeluParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > kMaxRows || p.width <= 0 || p.out_stride < p.width ||
      p.out_stride > kMaxColumns) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  GatedGeluKernelParams k;
  k.p = p;
  k.in_aligned = AlignedRows(p.gate_up, p.in_stride * 2, 16);
  k.out_aligned = AlignedRows(p.out, p.out_stride * 2, 16);
  return gpu::Launch(GatedGeluKernel, UnitGrid("gated_gelu", p.rows, p.out_stride, stream), k);
}

cudaError_t LaunchGateEmbedding(const GateEmbeddingParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > kMaxRows || p.dim <= 0 || p.first < 0 || p.out_stride < p.dim ||
      p.out_stride > kMaxColumns) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  GateEmbeddingKernelParams k;
  k.p = p;
  k.gate_aligned = AlignedRows(p.gate, p.gate_stride * 2, 16);
  k.ple_aligned = AlignedRows(p.ple + p.first, p.ple_stride * 4, 16);
  k.out_aligned = AlignedRows(p.out, p.out_stride * 2, 16);
  return gpu::Launch(GateEmbeddingKernel, UnitGrid("gate_embedding", p.rows, p.out_stride, stream),
                     k);
}

cudaError_t LaunchRoundRows(const RoundRowsParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > kMaxRows || p.dim <= 0 || p.y_stride < p.dim ||
      p.y_stride > kMaxColumns) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  RoundRowsKernelParams k;
  k.p = p;
  k.x_aligned = AlignedRows(p.x, p.x_stride * 4, 16);
  k.y_aligned = AlignedRows(p.y, p.y_stride * 2, 16);
  return gpu::Launch(RoundRowsKernel, UnitGrid("round_rows", p.rows, p.y_stride, stream), k);
}

cudaError_t LaunchSoftCap(const SoftCapParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > kMaxRows || p.dim <= 0 || p.dim > kMaxColumns || !(p.cap > 0)) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  SoftCapKernelParams k;
  k.p = p;
  k.aligned = AlignedRows(p.x, p.stride * 4, 16);
  return gpu::Launch(SoftCapKernel, UnitGrid("soft_cap", p.rows, p.dim, stream), k);
}

}  // namespace lapidary
