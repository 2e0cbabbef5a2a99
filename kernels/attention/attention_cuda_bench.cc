// The attention kernels of the released models on a GPU: time by events, and the share of the roof
// that limits them. Decode and the page writer: bytes, against memory. Prefill: FLOPs, against the
// tensor cores.
//
// Also compiled for the SIMT executor, where sizes shrink and times mean nothing.
#include <benchmark/benchmark.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/attention/norm_rope_write_cuda.h"
#include "kernels/attention/paged_attention_cuda.h"
#include "kernels/device_bench_support.h"

namespace lapidary {
namespace {

struct Shape {
  const char* name;
  GpuKvLayout layout;
  int q_heads, kv_heads, window;
};
// By the first argument of every benchmark.
const Shape kShapes[] = {
    {"26B sliding", {GpuKvType::kBf16, KvFormat::kSplit, 256, 0}, 16, 8, 1024},
    {"26B global", {GpuKvType::kBf16, KvFormat::kFolded, 512, 64}, 16, 2, 0},
    {"31B global", {GpuKvType::kBf16, KvFormat::kFolded, 512, 64}, 32, 4, 0},
    {"12B global", {GpuKvType::kBf16, KvFormat::kFolded, 512, 64}, 16, 1, 0},
    {"E4B global", {GpuKvType::kBf16, KvFormat::kSplit, 512, 0}, 8, 2, 0},
    {"26B sliding e4m3", {GpuKvType::kE4m3, KvFormat::kSplit, 256, 0}, 16, 8, 1024},
    {"26B global e4m3", {GpuKvType::kE4m3, KvFormat::kFolded, 512, 64}, 16, 2, 0},
};

// Sequences of one length, every page somewhere else.
struct Pages {
  Pages(const Shape& shape, int sequences, int length)
      : per_sequence((length + kPageTokens - 1) / kPageTokens),
        page_bytes(int64_t{shape.kv_heads} * shape.layout.head_bytes()),
        pool(int64_t{sequences} * per_sequence * page_bytes),
        table(Shuffled(sequences * per_sequence)) {}
  static std::vector<int32_t> Shuffled(int pages) {
    std::vector<int32_t> table(pages);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(1));
    return table;
  }
  const int per_sequence;
  const int64_t page_bytes;
  const Randoms pool;
  const Zeros table;
};

GpuAttentionParams Params(const Shape& shape, const Pages& pages, const Zeros& query,
                          const Zeros& out) {
  GpuAttentionParams p;
  p.layout = shape.layout;
  p.query = query.As<__nv_bfloat16>();
  p.out = out.As<__nv_bfloat16>();
  p.out_stride = int64_t{shape.q_heads} * shape.layout.head_dim;
  p.q_heads = shape.q_heads;
  p.kv_heads = shape.kv_heads;
  for (int h = 0; h <= shape.kv_heads; ++h) {
    p.group_begin[h] = static_cast<int16_t>(h * (shape.q_heads / shape.kv_heads));
  }
  p.window = shape.window;
  p.page_table = pages.table.As<int32_t>();
  p.pool = pages.pool.As<uint8_t>();
  p.page_bytes = pages.page_bytes;
  return p;
}

// Arguments: shape, rows, context.
void BM_PagedDecode(benchmark::State& state) {
  const Shape& shape = kShapes[state.range(0)];
  const int rows = std::max<int>(1, state.range(1) / kShrink);
  const int context = std::max<int>(1, state.range(2) / kShrink);
  const Device device = ThisDevice();
  const Pages pages(shape, rows, context);
  const Randoms query(int64_t{rows} * shape.q_heads * shape.layout.score_columns() * 2);
  const Zeros out(int64_t{rows} * shape.q_heads * shape.layout.head_dim * 2);
  const GpuAttentionParams p = Params(shape, pages, query, out);
  std::vector<AttentionRun> runs;
  for (int r = 0; r < rows; ++r) {
    runs.push_back(
        {.token = r, .len = 1, .position = context - 1, .table = r * pages.per_sequence});
  }
  const Zeros device_runs(runs);
  const DecodePlan plan = PlanDecode(p, rows, device.chip);
  const Zeros workspace(plan.workspace_bytes + 1);
  const int seen = shape.window > 0 ? std::min(context, shape.window) : context;
  const double bytes =
      double{1} * rows * shape.kv_heads * seen * shape.layout.head_bytes() / kPageTokens;
  state.SetLabel(shape.name);
  TimeOnDevice(state, "bytes_per_s", bytes, device.bytes_per_second, [&](cudaStream_t stream) {
    return LaunchPagedDecode(p, device_runs.As<AttentionRun>(), rows, plan, workspace.As<void>(),
                             device.chip, stream);
  });
}
BENCHMARK(BM_PagedDecode)
    ->ArgsProduct({{0, 1, 2, 3, 4, 5, 6}, {1, 8, 64}, {1024, 8192, 32768}})
    ->UseManualTime();

// Arguments: shape, tokens of the chunk, tokens before it.
void BM_PagedPrefill(benchmark::State& state) {
  const Shape& shape = kShapes[state.range(0)];
  const int tokens = std::max<int>(16, state.range(1) / kShrink);
  const int before = static_cast<int>(state.range(2)) / kShrink;
  const Device device = ThisDevice();
  const Pages pages(shape, 1, before + tokens);
  const Randoms query(int64_t{tokens} * shape.q_heads * shape.layout.score_columns() * 2);
  const Zeros out(int64_t{tokens} * shape.q_heads * shape.layout.head_dim * 2);
  const GpuAttentionParams p = Params(shape, pages, query, out);
  const std::vector<AttentionRun> runs{{.len = tokens, .position = before}};
  const int group = shape.q_heads / shape.kv_heads;
  std::vector<PrefillBlock> blocks;
  CutPrefill(runs, PrefillBlockTokens(shape.layout, group, device.chip), &blocks);
  const Zeros device_runs(runs), device_blocks(blocks);
  double keys = 0;  // seen by all tokens
  for (int i = 0; i < tokens; ++i) {
    const int seen = before + i + 1;
    keys += shape.window > 0 ? std::min(seen, shape.window) : seen;
  }
  const double flops =
      2.0 * keys * shape.q_heads * (shape.layout.score_columns() + shape.layout.head_dim);
  state.SetLabel(shape.name);
  TimeOnDevice(state, "flop_per_s", flops, device.flops_per_second, [&](cudaStream_t stream) {
    return LaunchPagedPrefill(p, device_runs.As<AttentionRun>(), device_blocks.As<PrefillBlock>(),
                              static_cast<int>(blocks.size()), device.chip, stream);
  });
}
BENCHMARK(BM_PagedPrefill)
    ->ArgsProduct({{0, 1, 2, 3, 4, 5, 6}, {512, 4096}, {0, 8192}})
    ->UseManualTime();

// Arguments: shape, tokens.
void BM_NormRopeWrite(benchmark::State& state) {
  const Shape& shape = kShapes[state.range(0)];
  const int tokens = std::max<int>(1, state.range(1) / kShrink);
  const int d = shape.layout.head_dim;
  const bool k_eq_v = shape.layout.format == KvFormat::kFolded;
  const int pairs = k_eq_v ? shape.layout.rotated_pairs : d / 2;
  const int heads = shape.q_heads + shape.kv_heads * (k_eq_v ? 1 : 2);
  const Device device = ThisDevice();
  const Pages pages(shape, 1, tokens);
  const Zeros qkv(int64_t{tokens} * heads * d * 2), weight(d * 4);
  const Zeros cos_sin(int64_t{tokens} * 2 * pairs * 4);
  const Zeros query(int64_t{tokens} * shape.q_heads * shape.layout.score_columns() * 2);
  std::vector<int32_t> page_of(tokens), positions(tokens);
  for (int t = 0; t < tokens; ++t) page_of[t] = t / kPageTokens, positions[t] = t;
  const Zeros device_pages(page_of), device_positions(positions);
  const NormRopeWriteParams p{.layout = shape.layout,
                              .qkv = qkv.As<__nv_bfloat16>(),
                              .qkv_stride = int64_t{heads} * d,
                              .tokens = tokens,
                              .q_heads = shape.q_heads,
                              .kv_heads = shape.kv_heads,
                              .k_eq_v = k_eq_v,
                              .q_norm = weight.As<float>(),
                              .k_norm = weight.As<float>(),
                              .key_weight = weight.As<float>(),
                              .cos_sin = cos_sin.As<float>(),
                              .pairs = pairs,
                              .query = query.As<__nv_bfloat16>(),
                              .page_of = device_pages.As<int32_t>(),
                              .positions = device_positions.As<int32_t>(),
                              .pool = pages.pool.As<uint8_t>(),
                              .page_bytes = pages.page_bytes};
  const double kv_bytes = double{1} * shape.kv_heads * shape.layout.head_bytes() / kPageTokens;
  const double bytes = tokens * (heads * d * 2 + shape.q_heads * shape.layout.score_columns() * 2 +
                                 2 * pairs * 4 + kv_bytes);
  state.SetLabel(shape.name);
  TimeOnDevice(state, "bytes_per_s", bytes, device.bytes_per_second,
               [&](cudaStream_t stream) { return LaunchNormRopeWrite(p, stream); });
}
BENCHMARK(BM_NormRopeWrite)->ArgsProduct({{0, 1, 4, 5, 6}, {1, 64, 4096}})->UseManualTime();

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
