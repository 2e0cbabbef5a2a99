// Rows to e4m3 codes with one scale each. A block (or, for narrow rows, a warp) reads a row once
// into registers, finds its largest magnitude, and writes the codes: 2 bytes read and 1 written for
// each element, memory is the limit.
#include "kernels/elementwise/row_ops_cuda.h"
#include "kernels/elementwise/row_team.h"

namespace lapidary {
namespace {

struct QuantizeRowsKernelParams {
  QuantizeRowsParams p;
  bool x_aligned, codes_aligned;
};

template <bool kWarpRows>
__global__ void __launch_bounds__(RowTeam<kWarpRows>::kMaxThreads, kWarpRows ? 1 : 2)
    QuantizeRowsKernel(const __grid_constant__ QuantizeRowsKernelParams k) {
  GPU_SHARED(maxima, float[32]);
  constexpr int kKept = RowTeam<kWarpRows>::kKept;
  const QuantizeRowsParams& p = k.p;
  const RowTeam<kWarpRows> team;
  const int64_t row = team.row();
  const int thread = team.thread(), step = team.threads() * kUnit;
  const int dim = static_cast<int>(p.dim), codes_stride = static_cast<int>(p.codes_stride);
  if (row >= p.rows) return;
  const __nv_bfloat16* x = p.x + row * p.x_stride;
  uint8_t* codes = p.codes + row * p.codes_stride;
  Unit kept[kKept];
  float largest = 0;
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    kept[u] = LoadUnit(x, thread * kUnit + u * step, dim, k.x_aligned);
    largest = Largest(kept[u], largest);
  }
  const int beyond = thread * kUnit + kKept * step;
  for (int first = beyond; first < dim; first += step) {
    largest = Largest(LoadUnit(x, first, dim, k.x_aligned), largest);
  }
  const float scale = E4m3Scale(team.Max(largest, maxima));
  if (thread == 0) p.scale[row] = scale;
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    StoreCodes(codes, thread * kUnit + u * step, codes_stride, k.codes_aligned, kept[u], scale);
  }
  for (int first = beyond; first < codes_stride; first += step) {
    StoreCodes(codes, first, codes_stride, k.codes_aligned, LoadUnit(x, first, dim, k.x_aligned),
               scale);
  }
}

}  // namespace

cudaError_t LaunchQuantizeRows(const QuantizeRowsParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > kMaxRows || p.dim <= 0 || p.codes_stride < p.dim ||
      p.codes_stride > kMaxWidth) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  QuantizeRowsKernelParams k;
  k.p = p;
  k.x_aligned = AlignedRows(p.x, p.x_stride * 2, 16);
  k.codes_aligned = AlignedRows(p.codes, p.codes_stride, 8);
  const RowLaunch plan = PlanRows(p.rows, p.dim);
  gpu::LaunchConfig config;
  config.name = "quantize_rows";
  config.grid = plan.grid;
  config.block = plan.block;
  config.stream = stream;
  return gpu::Launch(plan.warp_rows ? QuantizeRowsKernel<true> : QuantizeRowsKernel<false>, config,
                     k);
}

}  // namespace lapidary
