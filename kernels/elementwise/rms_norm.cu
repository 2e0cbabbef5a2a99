// RMS norms. A block (or, for narrow rows, a warp) reads a row once into registers, adds up its
// squares, and writes it scaled: for M = 5376, 672 threads of 8 elements each and one barrier.
//
// Bytes per element: RmsNorm reads 4 (and 4 of w, from L2) and writes 2; AddNormed reads 6 and
// writes 4; about 3 FLOP an element. Memory is the limit with many rows, the latency of one read
// and one barrier with few.
#include <type_traits>

#include "kernels/elementwise/rms_norm_cuda.h"
#include "kernels/elementwise/row_team.h"

namespace lapidary {
namespace {

// The units of one row that a thread keeps.
template <int kKept, class T>
GPU_DEVICE void LoadKept(Unit (&kept)[kKept], const T* row, int dim, bool aligned, int thread,
                         int threads) {
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    kept[u] = LoadUnit(row, (thread + u * threads) * kUnit, dim, aligned);
  }
}

// Calls use(unit, first element) for a thread's units of a row, those kept and those to be read.
template <int kKept, class T, class Use>
GPU_DEVICE void ForUnits(const Unit (&kept)[kKept], const T* row, int dim, bool aligned, int thread,
                         int threads, Use use) {
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    const int first = (thread + u * threads) * kUnit;
    if (first < dim) use(kept[u], first);
  }
  for (int first = (thread + kKept * threads) * kUnit; first < dim; first += threads * kUnit) {
    use(LoadUnit(row, first, dim, aligned), first);
  }
}

GPU_DEVICE float InverseRms(float sum, int dim, float eps) {
  return rsqrtf(sum / static_cast<float>(dim) + eps);
}

// (x * scale) * w, as the CPU rounds it.
GPU_DEVICE Unit Normed(const Unit& x, float scale, const float* w, int first, int dim,
                       bool aligned) {
  Unit y;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) y.v[i] = x.v[i] * scale;
  if (w == nullptr) return y;
  const Unit factor = LoadUnit(w, first, dim, aligned);
#pragma unroll
  for (int i = 0; i < kUnit; ++i) y.v[i] *= factor.v[i];
  return y;
}

struct RmsNormKernelParams {
  RmsNormParams p;
  void* y;
  bool x_aligned, w_aligned, y_aligned;
};

// Y: bf16, float, or uint8_t for e4m3.
template <bool kWarpRows, class Y>
__global__ void __launch_bounds__(RowTeam<kWarpRows>::kMaxThreads,
                                  kWarpRows || std::is_same_v<Y, uint8_t> ? 1 : 2)
    RmsNormKernel(const __grid_constant__ RmsNormKernelParams k) {
  GPU_SHARED(sums, float[32]);
  constexpr bool kCodes = std::is_same_v<Y, uint8_t>;
  const RmsNormParams& p = k.p;
  const RowTeam<kWarpRows> team;
  const int64_t row = team.row();
  const int thread = team.thread(), threads = team.threads();
  const int dim = static_cast<int>(p.dim), y_stride = static_cast<int>(p.y_stride);
  if (row >= p.rows) return;
  const float* x = p.x + (p.row_of == nullptr ? row : p.row_of[row]) * p.x_stride;
  Unit kept[RowTeam<kWarpRows>::kKept];
  LoadKept(kept, x, dim, k.x_aligned, thread, threads);
  float sum = 0;
  ForUnits(kept, x, dim, k.x_aligned, thread, threads,
           [&](const Unit& u, int) { sum = SumOfSquares(u, sum); });
  const float scale = InverseRms(team.Sum(sum, sums), dim, p.eps);

  Y* y = static_cast<Y*>(k.y) + row * p.y_stride;
  float code_scale = 1;
  if constexpr (kCodes) {
    GPU_SHARED(maxima, float[32]);
    float largest = 0;
    ForUnits(kept, x, dim, k.x_aligned, thread, threads, [&](const Unit& u, int first) {
      largest = Largest(Normed(u, scale, p.w, first, dim, k.w_aligned), largest);
    });
    code_scale = E4m3Scale(team.Max(largest, maxima));
    if (thread == 0) p.y_scale[row] = code_scale;
  }
  const auto store = [&](const Unit& unit, int first) {
    if constexpr (kCodes) {
      StoreCodes(y, first, y_stride, k.y_aligned, unit, code_scale);
    } else {
      StoreUnit(y, first, y_stride, k.y_aligned, unit);
    }
  };
  ForUnits(kept, x, dim, k.x_aligned, thread, threads, [&](const Unit& u, int first) {
    store(Normed(u, scale, p.w, first, dim, k.w_aligned), first);
  });
  const int padded = (dim + kUnit - 1) / kUnit * kUnit;  // up to here it has been written
  for (int first = padded + thread * kUnit; first < y_stride; first += threads * kUnit) {
    store(Unit{}, first);
  }
}

struct AddNormedKernelParams {
  AddNormedParams p;
  bool f_aligned, w_aligned, x_aligned;
};

template <bool kWarpRows>
__global__ void __launch_bounds__(RowTeam<kWarpRows>::kMaxThreads, kWarpRows ? 1 : 2)
    AddNormedKernel(const __grid_constant__ AddNormedKernelParams k) {
  GPU_SHARED(sums, float[32]);
  const AddNormedParams& p = k.p;
  const RowTeam<kWarpRows> team;
  const int64_t row = team.row();
  const int thread = team.thread(), threads = team.threads();
  const int dim = static_cast<int>(p.dim);
  if (row >= p.rows) return;
  const __nv_bfloat16* f = p.f + row * p.f_stride;
  float* x = p.x + row * p.x_stride;
  Unit kept[RowTeam<kWarpRows>::kKept];
  LoadKept(kept, f, dim, k.f_aligned, thread, threads);
  float sum = 0;
  ForUnits(kept, f, dim, k.f_aligned, thread, threads,
           [&](const Unit& u, int) { sum = SumOfSquares(u, sum); });
  const float scale = InverseRms(team.Sum(sum, sums), dim, p.eps);
  ForUnits(kept, f, dim, k.f_aligned, thread, threads, [&](const Unit& u, int first) {
    const Unit g = Normed(u, scale, p.w, first, dim, k.w_aligned);
    Unit y = LoadUnit(x, first, dim, k.x_aligned);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) y.v[i] = (y.v[i] + g.v[i]) * p.scalar;
    StoreUnit(x, first, dim, k.x_aligned, y);
  });
}

struct AddNormedPairKernelParams {
  AddNormedPairParams p;
  bool f_aligned, w_aligned, x_aligned;
};

template <bool kWarpRows>
__global__ void __launch_bounds__(RowTeam<kWarpRows>::kMaxThreads, 1)
    AddNormedPairKernel(const __grid_constant__ AddNormedPairKernelParams k) {
  GPU_SHARED(dense_sums, float[32]);
  GPU_SHARED(expert_sums, float[32]);
  GPU_SHARED(sums, float[32]);
  const AddNormedPairParams& p = k.p;
  const RowTeam<kWarpRows> team;
  const int64_t row = team.row();
  const int thread = team.thread(), threads = team.threads();
  const int dim = static_cast<int>(p.dim);
  if (row >= p.rows) return;
  const __nv_bfloat16* dense = p.dense + row * p.f_stride;
  const __nv_bfloat16* experts = p.experts + row * p.f_stride;
  float* x = p.x + row * p.x_stride;
  constexpr int kKept = RowTeam<kWarpRows>::kKept;
  Unit kept[kKept], more[kKept];
  LoadKept(kept, dense, dim, k.f_aligned, thread, threads);
  LoadKept(more, experts, dim, k.f_aligned, thread, threads);
  float dense_sum = 0, expert_sum = 0;
  ForUnits(kept, dense, dim, k.f_aligned, thread, threads,
           [&](const Unit& u, int) { dense_sum = SumOfSquares(u, dense_sum); });
  ForUnits(more, experts, dim, k.f_aligned, thread, threads,
           [&](const Unit& u, int) { expert_sum = SumOfSquares(u, expert_sum); });
  const float dense_scale = InverseRms(team.Sum(dense_sum, dense_sums), dim, p.eps);
  const float expert_scale = InverseRms(team.Sum(expert_sum, expert_sums), dim, p.eps);

  // g of a thread's units takes the place of dense; beyond those kept it is formed twice.
  const auto mix = [&](const Unit& a, const Unit& b, int first) {
    Unit g = Normed(a, dense_scale, p.w_dense, first, dim, k.w_aligned);
    const Unit h = Normed(b, expert_scale, p.w_experts, first, dim, k.w_aligned);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) g.v[i] += h.v[i];
    return g;
  };
  const auto mix_again = [&](int first) {
    return mix(LoadUnit(dense, first, dim, k.f_aligned), LoadUnit(experts, first, dim, k.f_aligned),
               first);
  };
  float sum = 0;
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    const int first = (thread + u * threads) * kUnit;
    if (first < dim) kept[u] = mix(kept[u], more[u], first);
    sum = SumOfSquares(kept[u], sum);
  }
  const int beyond = (thread + kKept * threads) * kUnit;
  for (int first = beyond; first < dim; first += threads * kUnit) {
    sum = SumOfSquares(mix_again(first), sum);
  }
  const float scale = InverseRms(team.Sum(sum, sums), dim, p.eps);
  const auto add = [&](const Unit& g, int first) {
    const Unit n = Normed(g, scale, p.w, first, dim, k.w_aligned);
    Unit y = LoadUnit(x, first, dim, k.x_aligned);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) y.v[i] = (y.v[i] + n.v[i]) * p.scalar;
    StoreUnit(x, first, dim, k.x_aligned, y);
  };
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    const int first = (thread + u * threads) * kUnit;
    if (first < dim) add(kept[u], first);
  }
  for (int first = beyond; first < dim; first += threads * kUnit) {
    add(mix_again(first), first);
  }
}

template <class Params>
cudaError_t LaunchRows(const char* name, void (*warp_kernel)(Params), void (*block_kernel)(Params),
                       int64_t rows, int64_t width, const Params& params, cudaStream_t stream) {
  const RowLaunch plan = PlanRows(rows, width);
  gpu::LaunchConfig config;
  config.name = name;
  config.grid = plan.grid;
  config.block = plan.block;
  config.stream = stream;
  return gpu::Launch(plan.warp_rows ? warp_kernel : block_kernel, config, params);
}

}  // namespace

cudaError_t LaunchRmsNorm(const RmsNormParams& p, cudaStream_t stream) {
  const int outputs = (p.y_bf16 != nullptr) + (p.y_fp32 != nullptr) + (p.y_e4m3 != nullptr);
  if (p.rows < 0 || p.rows > kMaxRows || p.dim <= 0 || p.dim > kMaxWidth || p.y_stride < p.dim ||
      p.y_stride > kMaxWidth || outputs != 1 || (p.y_e4m3 != nullptr && p.y_scale == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  RmsNormKernelParams k;
  k.p = p;
  k.x_aligned = AlignedRows(p.x, p.x_stride * 4, 16);
  k.w_aligned = AlignedRows(p.w, 0, 16);
  if (p.y_bf16 != nullptr) {
    k.y = p.y_bf16;
    k.y_aligned = AlignedRows(k.y, p.y_stride * 2, 16);
    return LaunchRows("rms_norm", RmsNormKernel<true, __nv_bfloat16>,
                      RmsNormKernel<false, __nv_bfloat16>, p.rows, p.dim, k, stream);
  }
  if (p.y_fp32 != nullptr) {
    k.y = p.y_fp32;
    k.y_aligned = AlignedRows(k.y, p.y_stride * 4, 16);
    return LaunchRows("rms_norm", RmsNormKernel<true, float>, RmsNormKernel<false, float>, p.rows,
                      p.dim, k, stream);
  }
  k.y = p.y_e4m3;
  k.y_aligned = AlignedRows(k.y, p.y_stride, 8);
  return LaunchRows("rms_norm", RmsNormKernel<true, uint8_t>, RmsNormKernel<false, uint8_t>, p.rows,
                    p.dim, k, stream);
}

cudaError_t LaunchAddNormed(const AddNormedParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > kMaxRows || p.dim <= 0 || p.dim > kMaxWidth)
    return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  AddNormedKernelParams k;
  k.p = p;
  k.f_aligned = AlignedRows(p.f, p.f_stride * 2, 16);
  k.w_aligned = AlignedRows(p.w, 0, 16);
  k.x_aligned = AlignedRows(p.x, p.x_stride * 4, 16);
  return LaunchRows("add_normed", AddNormedKernel<true>, AddNormedKernel<false>, p.rows, p.dim, k,
                    stream);
}

cudaError_t LaunchAddNormedPair(const AddNormedPairParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows > kMaxRows || p.dim <= 0 || p.dim > kMaxWidth)
    return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  AddNormedPairKernelParams k;
  k.p = p;
  k.f_aligned = AlignedRows(p.dense, p.f_stride * 2, 16) && AlignedRows(p.experts, 0, 16);
  k.w_aligned =
      AlignedRows(p.w_dense, 0, 16) && AlignedRows(p.w_experts, 0, 16) && AlignedRows(p.w, 0, 16);
  k.x_aligned = AlignedRows(p.x, p.x_stride * 4, 16);
  return LaunchRows("add_normed_pair", AddNormedPairKernel<true>, AddNormedPairKernel<false>,
                    p.rows, p.dim, k, stream);
}

}  // namespace lapidary
