// Rows fetched by an index: ids, embeddings, the embeddings of layers, rows moved together. Pure
// memory traffic: an embedded element reads 2 bytes and writes 4; MixEmbeddings reads 4 (2 of them
// perhaps from the host's memory) and writes 4.
#include "kernels/elementwise/row_ops_cuda.h"
#include "kernels/elementwise/row_team.h"

namespace lapidary {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    ResolveIdsKernel(const __grid_constant__ ResolveIdsParams p) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= p.tokens) return;
  const int32_t from = p.sampled_from == nullptr ? -1 : p.sampled_from[t];
  p.ids[t] = from < 0 ? p.known[t] : p.sampled[from];
}

struct EmbedKernelParams {
  EmbedParams p;
  bool table_aligned, x_aligned;
};

template <bool kWarpRows>
__global__ void __launch_bounds__(RowTeam<kWarpRows>::kMaxThreads)
    EmbedKernel(const __grid_constant__ EmbedKernelParams k) {
  const EmbedParams& p = k.p;
  const RowTeam<kWarpRows> team;
  const int64_t token = team.row();
  const int dim = static_cast<int>(p.dim);
  if (token >= p.tokens) return;
  const int64_t id = p.ids[token] - p.first_id;
  const bool here = id >= 0 && id < p.vocab_rows;
  const __nv_bfloat16* row = p.table + (here ? id : 0) * p.table_stride;
  float* x = p.x + token * p.x_stride;
  for (int first = team.thread() * kUnit; first < dim; first += team.threads() * kUnit) {
    Unit y{};
    if (here) {
      y = LoadUnit(row, first, dim, k.table_aligned);
#pragma unroll
      for (int i = 0; i < kUnit; ++i) y.v[i] *= p.scale;
    }
    StoreUnit(x, first, dim, k.x_aligned, y);
  }
}

struct MixEmbeddingsKernelParams {
  MixEmbeddingsParams p;
  bool projected_aligned, table_aligned, w_aligned, ple_aligned;
};

// A row is one layer of one token.
template <bool kWarpRows>
__global__ void __launch_bounds__(RowTeam<kWarpRows>::kMaxThreads)
    MixEmbeddingsKernel(const __grid_constant__ MixEmbeddingsKernelParams k) {
  GPU_SHARED(sums, float[32]);
  constexpr int kKept = RowTeam<kWarpRows>::kKept;
  const MixEmbeddingsParams& p = k.p;
  const RowTeam<kWarpRows> team;
  const int64_t token = team.row() / p.layers, layer = team.row() % p.layers;
  const int dim = static_cast<int>(p.dim);
  if (token >= p.tokens) return;
  const __nv_bfloat16* projected = p.projected + token * p.projected_stride + layer * p.dim;
  const int64_t id = p.ids[token];
  const bool stored = id >= 0 && id < p.table_rows;
  const __nv_bfloat16* table = p.table + ((stored ? id : 0) * p.layers + layer) * p.dim;
  float* ple = p.ple + token * p.ple_stride + layer * p.dim;

  // The table's row is asked for first: it may lie in the host's memory.
  Unit kept[kKept], rows[kKept];
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    const int first = (team.thread() + u * team.threads()) * kUnit;
    rows[u] = stored ? LoadUnit(table, first, dim, k.table_aligned) : Unit{};
    kept[u] = LoadUnit(projected, first, dim, k.projected_aligned);
  }
  const auto scaled = [&](Unit u) {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) u.v[i] *= p.projection_scale;
    return u;
  };
  const int beyond = (team.thread() + kKept * team.threads()) * kUnit;
  const int step = team.threads() * kUnit;
  float sum = 0;
#pragma unroll
  for (int u = 0; u < kKept; ++u) sum = SumOfSquares(kept[u] = scaled(kept[u]), sum);
  for (int first = beyond; first < dim; first += step) {
    sum = SumOfSquares(scaled(LoadUnit(projected, first, dim, k.projected_aligned)), sum);
  }
  const float scale = rsqrtf(team.Sum(sum, sums) / static_cast<float>(dim) + p.eps);
  const auto mix = [&](const Unit& u, const Unit& row, int first) {
    const Unit w = LoadUnit(p.w, first, dim, k.w_aligned);
    Unit y;
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      y.v[i] = fmaf(row.v[i], p.table_scale, u.v[i] * scale * w.v[i]) * 0.70710678f;
    }
    StoreUnit(ple, first, dim, k.ple_aligned, y);
  };
#pragma unroll
  for (int u = 0; u < kKept; ++u) {
    const int first = (team.thread() + u * team.threads()) * kUnit;
    if (first < dim) mix(kept[u], rows[u], first);
  }
  for (int first = beyond; first < dim; first += step) {
    mix(scaled(LoadUnit(projected, first, dim, k.projected_aligned)),
        stored ? LoadUnit(table, first, dim, k.table_aligned) : Unit{}, first);
  }
}

// Chunk: uint4 or uint32_t. Blocks of chunks along y.
template <class Chunk>
__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(const __grid_constant__ GatherRowsParams p) {
  const int64_t row = blockIdx.x;
  const int64_t at =
      (int64_t{blockIdx.y} * kThreads + threadIdx.x) * static_cast<int64_t>(sizeof(Chunk));
  if (at >= p.row_bytes) return;
  const auto* in = static_cast<const unsigned char*>(p.in) + p.row_of[row] * p.in_stride_bytes;
  auto* out = static_cast<unsigned char*>(p.out) + row * p.out_stride_bytes;
  gpu::Store(out + at, gpu::Load<Chunk>(in + at));
}

gpu::LaunchConfig RowGrid(const char* name, const RowLaunch& plan, cudaStream_t stream) {
  gpu::LaunchConfig config;
  config.name = name;
  config.grid = plan.grid;
  config.block = plan.block;
  config.stream = stream;
  return config;
}

}  // namespace

cudaError_t LaunchResolveIds(const ResolveIdsParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.tokens > kMaxRows) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "resolve_ids";
  config.grid = dim3(static_cast<unsigned>((p.tokens + kThreads - 1) / kThreads));
  config.block = dim3(kThreads);
  config.stream = stream;
  return gpu::Launch(ResolveIdsKernel, config, p);
}

cudaError_t LaunchEmbed(const EmbedParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.tokens > kMaxRows || p.dim <= 0 || p.dim > kMaxWidth || p.vocab_rows < 0) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  EmbedKernelParams k;
  k.p = p;
  k.table_aligned = AlignedRows(p.table, p.table_stride * 2, 16);
  k.x_aligned = AlignedRows(p.x, p.x_stride * 4, 16);
  const RowLaunch plan = PlanRows(p.tokens, p.dim);
  return gpu::Launch(plan.warp_rows ? EmbedKernel<true> : EmbedKernel<false>,
                     RowGrid("embed", plan, stream), k);
}

cudaError_t LaunchMixEmbeddings(const MixEmbeddingsParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.layers <= 0 || p.tokens > kMaxRows / p.layers || p.dim <= 0 ||
      p.dim > kMaxWidth || p.table_rows < 0) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  MixEmbeddingsKernelParams k;
  k.p = p;
  k.projected_aligned =
      AlignedRows(p.projected, p.projected_stride * 2, 16) && AlignedRows(nullptr, p.dim * 2, 16);
  k.table_aligned = AlignedRows(p.table, p.dim * 2, 16);
  k.w_aligned = AlignedRows(p.w, 0, 16);
  k.ple_aligned = AlignedRows(p.ple, p.ple_stride * 4, 16) && AlignedRows(nullptr, p.dim * 4, 16);
  const RowLaunch plan = PlanRows(p.tokens * p.layers, p.dim);
  return gpu::Launch(plan.warp_rows ? MixEmbeddingsKernel<true> : MixEmbeddingsKernel<false>,
                     RowGrid("mix_embeddings", plan, stream), k);
}

cudaError_t LaunchGatherRows(const GatherRowsParams& p, cudaStream_t stream) {
  const bool aligned = AlignedRows(p.in, p.in_stride_bytes, 16) &&
                       AlignedRows(p.out, p.out_stride_bytes, 16) && p.row_bytes % 16 == 0;
  const int64_t chunk = aligned ? 16 : 4;
  const int64_t blocks = (p.row_bytes / chunk + kThreads - 1) / kThreads;
  if (p.rows < 0 || p.rows > kMaxRows || p.row_bytes <= 0 || p.row_bytes % 4 != 0 ||
      !AlignedRows(p.in, p.in_stride_bytes, 4) || !AlignedRows(p.out, p.out_stride_bytes, 4) ||
      blocks > 65535) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  gpu::LaunchConfig config;
  config.name = "gather_rows";
  config.grid = dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(blocks));
  config.block = dim3(kThreads);
  config.stream = stream;
  return gpu::Launch(aligned ? GatherRowsKernel<uint4> : GatherRowsKernel<uint32_t>, config, p);
}

}  // namespace lapidary
