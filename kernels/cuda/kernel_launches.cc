// Prints how each kernel with dynamic shared memory is launched on each chip, one JSON object a
// line: scripts/kernel_report.py computes occupancy from it. The launchers say it themselves; what
// stands here is the list of cases that tell their kernels apart. No GPU is used.
#include <cstdio>
#include <cstdlib>

#include "kernels/attention/paged_attention_cuda.h"
#include "kernels/chip.h"
#include "kernels/cuda/launch_recorder.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "kernels/gemm/stream_product_plan.h"

namespace lapidary {
namespace {

struct NamedChip {
  const char* name;
  Chip chip;
};
constexpr NamedChip kChips[] = {
    {"80", {80, 108, 163 << 10}},     // A100
    {"89", {89, 142, 99 << 10}},      // L40S
    {"90a", {90, 132, 227 << 10}},    // H100
    {"100a", {100, 148, 227 << 10}},  // B200
    {"120a", {120, 170, 99 << 10}},   // RTX 5090
};

// An address that launchers find aligned; nothing reads it.
template <class T>
T* Somewhere() {
  alignas(1024) static char place[1024];
  return reinterpret_cast<T*>(place);
}

void Expect(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernel_launches: %s refuses a case: %s\n", what, cudaGetErrorName(error));
  std::exit(1);
}

// -- Products.

GpuMatrix Matrix(GpuNumber number) {
  GpuMatrix w{.data = Somewhere<void>(), .number = number, .tiled = true, .n = 1024, .k = 1024};
  if (number == GpuNumber::kE4m3) w.scale = Somewhere<float>();
  return w;
}
ProductInput Input(const GpuMatrix& w) {
  return {.x = Somewhere<void>(), .stride = w.k, .scale = w.scale};
}
ProductOutput Output(const GpuMatrix& w) { return {.y = Somewhere<void>(), .stride = w.n}; }

void StreamProducts(const Chip& chip) {
  for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
    const GpuMatrix w = Matrix(number);
    for (const int row_tile : {16, 32, 64}) {
      for (const int token_tile : {8, 16, 32, 64}) {
        if (StreamSharedBytes(row_tile, token_tile) > chip.shared_bytes) continue;
        const StreamPlan plan{.token_tile = token_tile, .row_tile = row_tile};
        Expect(LaunchStreamProduct(w, Input(w), token_tile, Output(w), plan, chip, nullptr),
               "LaunchStreamProduct");
      }
    }
  }
}

void GroupedProducts(const Chip& chip) {
  for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
    GroupedParams p{.w = Matrix(number), .experts = 8, .begin = Somewhere<int32_t>()};
    p.in = Input(p.w), p.out = Output(p.w), p.max_slots = 1024;
    for (const int row_tile : {16, 64, 128}) {
      for (const int token_tile : {8, 16, 32, 64, 128}) {
        if (!GroupedTilesExist(row_tile, token_tile) ||
            GroupedSharedBytes(row_tile, token_tile) > chip.shared_bytes) {
          continue;
        }
        GroupedPlan plan{.token_tile = token_tile, .row_tile = row_tile};
        Expect(LaunchGroupedProduct(p, plan, chip, nullptr), "LaunchGroupedProduct");
        if (!chip.has_wgmma() || number != GpuNumber::kBf16 || token_tile != 128) continue;
        plan.wgmma = true;
        Expect(LaunchGroupedProduct(p, plan, chip, nullptr), "LaunchGroupedProduct, wgmma");
      }
    }
  }
}

// -- Attention.

GpuAttentionParams Attention(const GpuKvLayout& layout, int group) {
  GpuAttentionParams p{.layout = layout, .query = Somewhere<const __nv_bfloat16>()};
  p.out = Somewhere<__nv_bfloat16>(), p.out_stride = int64_t{group} * layout.head_dim;
  p.q_heads = group, p.kv_heads = 1, p.group_begin[1] = static_cast<int16_t>(group);
  p.page_table = Somewhere<const int32_t>(), p.pool = Somewhere<const uint8_t>();
  p.page_bytes = layout.head_bytes();
  return p;
}

void PagedAttention(const Chip& chip) {
  const auto* runs = Somewhere<const AttentionRun>();
  const auto* blocks = Somewhere<const PrefillBlock>();
  for (const GpuKvType type : {GpuKvType::kBf16, GpuKvType::kE4m3}) {
    for (const GpuKvLayout& layout :
         {GpuKvLayout{type, KvFormat::kSplit, 64, 0}, GpuKvLayout{type, KvFormat::kSplit, 128, 0},
          GpuKvLayout{type, KvFormat::kSplit, 256, 0}, GpuKvLayout{type, KvFormat::kSplit, 512, 0},
          GpuKvLayout{type, KvFormat::kFolded, 128, 16},
          GpuKvLayout{type, KvFormat::kFolded, 512, 64}}) {
      for (const int group : {1, 16}) {
        const GpuAttentionParams p = Attention(layout, group);
        if (DecodeKernelTakes(layout, group, chip)) {
          Expect(LaunchPagedDecode(p, runs, 1, DecodePlan{}, nullptr, chip, nullptr),
                 "LaunchPagedDecode");
          Expect(LaunchPagedDecode(p, runs, 1, DecodePlan{.splits = 2}, Somewhere<void>(), chip,
                                   nullptr),
                 "LaunchPagedDecode, split");
        }
        if (PrefillKernelTakes(layout, chip)) {
          Expect(LaunchPagedPrefill(p, runs, blocks, 1, chip, nullptr), "LaunchPagedPrefill");
        }
        Expect(LaunchPagedGeneric(p, runs, 1, 1, nullptr), "LaunchPagedGeneric");
      }
    }
  }
}

int Run() {
  for (const NamedChip& chip : kChips) {
    StreamProducts(chip.chip);
    GroupedProducts(chip.chip);
    PagedAttention(chip.chip);
    for (const RecordedLaunch& launch : TakeLaunches()) {
      std::printf("{\"chip\": \"%s\", \"kernel\": \"%s\", \"threads\": %d, \"shared\": %zu}\n",
                  chip.name, launch.symbol.c_str(), launch.threads, launch.shared_bytes);
    }
  }
  return 0;
}

}  // namespace
}  // namespace lapidary

int main() { return lapidary::Run(); }
