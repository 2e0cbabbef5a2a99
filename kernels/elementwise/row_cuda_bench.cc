// Row operations of the released models on a GPU: time by events, bytes against memory. All of them
// read and write each element once.
#include <benchmark/benchmark.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/device_bench_support.h"
#include "kernels/elementwise/rms_norm_cuda.h"
#include "kernels/elementwise/row_ops_cuda.h"

namespace lapidary {
namespace {

constexpr int64_t kBf16 = 2, kFp32 = 4, kId = 4;

// Arguments of most: rows, elements of a row.
struct Shape {
  explicit Shape(const benchmark::State& state)
      : rows(std::max<int64_t>(1, state.range(0) / kShrink)), dim(state.range(1)) {}
  Zeros Bf16() const { return Zeros(rows * dim * kBf16); }
  Zeros Fp32() const { return Zeros(rows * dim * kFp32); }
  Zeros Weight() const { return Zeros(dim * kFp32); }
  const int64_t rows, dim;
};
void RowsOfHidden(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{1, 64, 4096}, {2816, 5376}})->UseManualTime();
}

// Rows spread over a table that no cache holds.
std::vector<int32_t> SpreadIds(int64_t count, int64_t rows) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = static_cast<int32_t>(i * 7919 % rows);
  return ids;
}

void BM_Embed(benchmark::State& state) {
  const Shape s(state);
  constexpr int64_t kVocab = 262144 / kShrink;
  const Zeros ids(SpreadIds(s.rows, kVocab)), table(kVocab * s.dim * kBf16), x = s.Fp32();
  const EmbedParams p{.ids = ids.As<int32_t>(),
                      .table = table.As<__nv_bfloat16>(),
                      .table_stride = s.dim,
                      .vocab_rows = kVocab,
                      .x = x.As<float>(),
                      .x_stride = s.dim,
                      .tokens = s.rows,
                      .dim = s.dim};
  TimeBytes(state, s.rows * (kId + s.dim * (kBf16 + kFp32)),
            [&](cudaStream_t stream) { return LaunchEmbed(p, stream); });
}
BENCHMARK(BM_Embed)->Apply(RowsOfHidden);

// Arguments: rows, elements, e4m3 with scales (else bf16).
void BM_RmsNorm(benchmark::State& state) {
  const Shape s(state);
  const bool e4m3 = state.range(2) != 0;
  const Zeros x = s.Fp32(), w = s.Weight(), y = s.Bf16(), scale(s.rows * kFp32);
  RmsNormParams p{.x = x.As<float>(),
                  .x_stride = s.dim,
                  .w = w.As<float>(),
                  .rows = s.rows,
                  .dim = s.dim,
                  .y_stride = s.dim};
  if (e4m3) {
    p.y_e4m3 = y.As<uint8_t>();
    p.y_scale = scale.As<float>();
  } else {
    p.y_bf16 = y.As<__nv_bfloat16>();
  }
  const int64_t row = s.dim * kFp32 + (e4m3 ? s.dim + kFp32 : s.dim * kBf16);
  TimeBytes(state, s.rows * row + s.dim * kFp32,
            [&](cudaStream_t stream) { return LaunchRmsNorm(p, stream); });
}
BENCHMARK(BM_RmsNorm)->ArgsProduct({{1, 64, 4096}, {2816, 5376}, {0, 1}})->UseManualTime();

void BM_AddNormed(benchmark::State& state) {
  const Shape s(state);
  const Zeros f = s.Bf16(), w = s.Weight(), x = s.Fp32();
  const AddNormedParams p{.f = f.As<__nv_bfloat16>(),
                          .f_stride = s.dim,
                          .w = w.As<float>(),
                          .x = x.As<float>(),
                          .x_stride = s.dim,
                          .rows = s.rows,
                          .dim = s.dim};
  TimeBytes(state, s.rows * s.dim * (kBf16 + 2 * kFp32) + s.dim * kFp32,
            [&](cudaStream_t stream) { return LaunchAddNormed(p, stream); });
}
BENCHMARK(BM_AddNormed)->Apply(RowsOfHidden);

void BM_AddNormedPair(benchmark::State& state) {
  const Shape s(state);
  const Zeros dense = s.Bf16(), experts = s.Bf16(), w = s.Weight(), x = s.Fp32();
  const AddNormedPairParams p{.dense = dense.As<__nv_bfloat16>(),
                              .experts = experts.As<__nv_bfloat16>(),
                              .f_stride = s.dim,
                              .w_dense = w.As<float>(),
                              .w_experts = w.As<float>(),
                              .w = w.As<float>(),
                              .x = x.As<float>(),
                              .x_stride = s.dim,
                              .rows = s.rows,
                              .dim = s.dim};
  TimeBytes(state, s.rows * s.dim * (2 * kBf16 + 2 * kFp32) + 3 * s.dim * kFp32,
            [&](cudaStream_t stream) { return LaunchAddNormedPair(p, stream); });
}
BENCHMARK(BM_AddNormedPair)->Apply(RowsOfHidden);

// Elements: of the result. 2112 and 21504 are the dense parts of 26B-A4B and 31B.
void BM_GatedGelu(benchmark::State& state) {
  const Shape s(state);
  const Zeros gate_up(2 * s.rows * s.dim * kBf16), out = s.Bf16();
  const GatedGeluParams p{.gate_up = gate_up.As<__nv_bfloat16>(),
                          .in_stride = 2 * s.dim,
                          .out = out.As<__nv_bfloat16>(),
                          .out_stride = s.dim,
                          .rows = s.rows,
                          .width = s.dim};
  TimeBytes(state, s.rows * s.dim * 3 * kBf16,
            [&](cudaStream_t stream) { return LaunchGatedGelu(p, stream); });
}
BENCHMARK(BM_GatedGelu)->ArgsProduct({{1, 64, 4096}, {2112, 21504}})->UseManualTime();

// One layer of E4B's embeddings: 256 of 42 x 256 columns.
void BM_GateEmbedding(benchmark::State& state) {
  const Shape s(state);
  constexpr int64_t kLayers = 42;
  const Zeros gate = s.Bf16(), ple(s.rows * kLayers * s.dim * kFp32), out = s.Bf16();
  const GateEmbeddingParams p{.gate = gate.As<__nv_bfloat16>(),
                              .gate_stride = s.dim,
                              .ple = ple.As<float>(),
                              .ple_stride = kLayers * s.dim,
                              .out = out.As<__nv_bfloat16>(),
                              .out_stride = s.dim,
                              .rows = s.rows,
                              .dim = s.dim};
  TimeBytes(state, s.rows * s.dim * (2 * kBf16 + kFp32),
            [&](cudaStream_t stream) { return LaunchGateEmbedding(p, stream); });
}
BENCHMARK(BM_GateEmbedding)->ArgsProduct({{1, 64, 4096}, {256}})->UseManualTime();

void BM_MixEmbeddings(benchmark::State& state) {
  const Shape s(state);
  constexpr int64_t kLayers = 42, kTableRows = 262144 / kShrink / 8;
  const int64_t width = kLayers * s.dim;
  const Zeros ids(SpreadIds(s.rows, kTableRows)), projected(s.rows * width * kBf16);
  const Zeros table(kTableRows * width * kBf16), w = s.Weight(), ple(s.rows * width * kFp32);
  const MixEmbeddingsParams p{.ids = ids.As<int32_t>(),
                              .projected = projected.As<__nv_bfloat16>(),
                              .projected_stride = width,
                              .table = table.As<__nv_bfloat16>(),
                              .table_rows = kTableRows,
                              .w = w.As<float>(),
                              .ple = ple.As<float>(),
                              .ple_stride = width,
                              .tokens = s.rows,
                              .layers = kLayers,
                              .dim = s.dim};
  TimeBytes(state, s.rows * (kId + width * (2 * kBf16 + kFp32)) + s.dim * kFp32,
            [&](cudaStream_t stream) { return LaunchMixEmbeddings(p, stream); });
}
BENCHMARK(BM_MixEmbeddings)->ArgsProduct({{1, 64, 4096}, {256}})->UseManualTime();

// Half of the rows are wanted, as fp32.
void BM_GatherRows(benchmark::State& state) {
  const Shape s(state);
  const int64_t wanted = (s.rows + 1) / 2;
  const Zeros in = s.Fp32(), out = s.Fp32(), row_of(SpreadIds(wanted, s.rows));
  const GatherRowsParams p{.in = in.As(),
                           .in_stride_bytes = s.dim * kFp32,
                           .out = out.As(),
                           .out_stride_bytes = s.dim * kFp32,
                           .row_of = row_of.As<int32_t>(),
                           .rows = wanted,
                           .row_bytes = s.dim * kFp32};
  TimeBytes(state, wanted * (kId + 2 * s.dim * kFp32),
            [&](cudaStream_t stream) { return LaunchGatherRows(p, stream); });
}
BENCHMARK(BM_GatherRows)->Apply(RowsOfHidden);

void BM_RoundRows(benchmark::State& state) {
  const Shape s(state);
  const Zeros x = s.Fp32(), y = s.Bf16();
  const RoundRowsParams p{.x = x.As<float>(),
                          .x_stride = s.dim,
                          .y = y.As<__nv_bfloat16>(),
                          .y_stride = s.dim,
                          .rows = s.rows,
                          .dim = s.dim};
  TimeBytes(state, s.rows * s.dim * (kFp32 + kBf16),
            [&](cudaStream_t stream) { return LaunchRoundRows(p, stream); });
}
BENCHMARK(BM_RoundRows)->Apply(RowsOfHidden);

// Elements: logits of a rank.
void BM_SoftCap(benchmark::State& state) {
  const Shape s(state);
  const Zeros x = s.Fp32();
  const SoftCapParams p{.x = x.As<float>(), .stride = s.dim, .rows = s.rows, .dim = s.dim};
  TimeBytes(state, s.rows * s.dim * 2 * kFp32,
            [&](cudaStream_t stream) { return LaunchSoftCap(p, stream); });
}
BENCHMARK(BM_SoftCap)->ArgsProduct({{1, 64}, {65536, 262144}})->UseManualTime();

void BM_QuantizeRows(benchmark::State& state) {
  const Shape s(state);
  const Zeros x = s.Bf16(), codes(s.rows * s.dim), scale(s.rows * kFp32);
  const QuantizeRowsParams p{.x = x.As<__nv_bfloat16>(),
                             .x_stride = s.dim,
                             .codes = codes.As<uint8_t>(),
                             .codes_stride = s.dim,
                             .scale = scale.As<float>(),
                             .rows = s.rows,
                             .dim = s.dim};
  TimeBytes(state, s.rows * (s.dim * (kBf16 + 1) + kFp32),
            [&](cudaStream_t stream) { return LaunchQuantizeRows(p, stream); });
}
BENCHMARK(BM_QuantizeRows)->Apply(RowsOfHidden);

// Arguments: tokens, pairs. More than read is written.
void BM_Rotation(benchmark::State& state) {
  const Shape s(state);
  const Zeros positions(s.rows * kId), frequency(s.dim * kFp32),
      cos_sin(2 * s.rows * s.dim * kFp32);
  const RotationParams p{.positions = positions.As<int32_t>(),
                         .frequency = frequency.As<float>(),
                         .cos_sin = cos_sin.As<float>(),
                         .tokens = s.rows,
                         .pairs = static_cast<int>(s.dim)};
  TimeBytes(state, s.rows * (kId + 2 * s.dim * kFp32) + s.dim * kFp32,
            [&](cudaStream_t stream) { return LaunchRotation(p, stream); });
}
BENCHMARK(BM_Rotation)->ArgsProduct({{1, 64, 4096}, {64, 128}})->UseManualTime();

// Arguments: tokens. Every second one is an earlier step's.
void BM_ResolveIds(benchmark::State& state) {
  const int64_t tokens = std::max<int64_t>(2, state.range(0) / kShrink);
  std::vector<int32_t> from(tokens, -1);
  for (int64_t t = 0; t < tokens; t += 2) from[t] = static_cast<int32_t>(t);
  const Zeros known(tokens * kId), sampled(tokens * kId), ids(tokens * kId), sampled_from(from);
  const ResolveIdsParams p{.known = known.As<int32_t>(),
                           .sampled_from = sampled_from.As<int32_t>(),
                           .sampled = sampled.As<int32_t>(),
                           .ids = ids.As<int32_t>(),
                           .tokens = tokens};
  TimeBytes(state, tokens * 3 * kId,
            [&](cudaStream_t stream) { return LaunchResolveIds(p, stream); });
}
BENCHMARK(BM_ResolveIds)->Arg(64)->Arg(4096)->UseManualTime();

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
