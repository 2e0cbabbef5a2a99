#include "kernels/gemm/stream_product_plan.h"

#include <algorithm>
#include <cstring>

namespace lapidary {
namespace {

bool Aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace

bool ValidProduct(const GpuMatrix& w, const ProductInput& in, const ProductOutput& out) {
  const int64_t element = w.element_bytes();
  const bool e4m3 = w.number == GpuNumber::kE4m3;
  const bool gated = out.epilogue == ProductEpilogue::kGatedGelu;
  if (w.n <= 0 || w.k <= 0 || w.data == nullptr || !Aligned(w.data, 16)) return false;
  if (!w.tiled && (w.k_stride < w.k || w.k_stride * element % 16 != 0)) return false;
  if (in.x == nullptr || !Aligned(in.x, 16) || in.stride < w.k || in.stride * element % 16 != 0) {
    return false;
  }
  if (e4m3 != (w.scale != nullptr) || e4m3 != (in.scale != nullptr)) return false;
  if (gated && w.n % 16 != 0) return false;
  const int64_t outputs = gated ? w.n / 2 : w.n;
  const int64_t y_element = out.epilogue == ProductEpilogue::kFp32 ? 4 : 2;
  return out.y != nullptr && Aligned(out.y, y_element) && out.stride >= outputs;
}

StreamPlan PlanStream(const GpuMatrix& w, int tokens, const Chip& chip) {
  StreamPlan plan;
  plan.token_tile = StreamTokenTile(tokens);
  plan.split_k = kStreamWarps;
  plan.row_tile = 64;
  while (plan.row_tile > 16) {
    const bool fills = (w.n + plan.row_tile - 1) / plan.row_tile >= chip.processors;
    if (fills && StreamSharedBytes(plan.row_tile, plan.token_tile) <= chip.shared_bytes) break;
    plan.row_tile /= 2;
  }
  return plan;
}

GroupedPlan PlanGrouped(const GroupedParams& p, const Chip& chip) {
  const int64_t slots = p.expected_slots > 0 ? p.expected_slots : p.max_slots;
  // Twice the average: routing is uneven, and a second tile reads an expert's weights again, while
  // columns without a token cost nothing as long as reading is the limit.
  const int64_t each = 2 * slots / std::max(p.experts, 1);
  GroupedPlan plan;
  plan.token_tile = each <= 32 ? std::min(StreamTokenTile(each), 32) : each <= 64 ? 64 : 128;
  plan.row_tile = GroupedRowTile(plan.token_tile);
  while (plan.token_tile > 8 &&
         GroupedSharedBytes(plan.row_tile, plan.token_tile) > chip.shared_bytes) {
    plan.token_tile /= 2;
    plan.row_tile = GroupedRowTile(plan.token_tile);
  }
  const int64_t blocks = GroupedItems(slots, p.experts, plan.token_tile) * p.w.tiles_n();
  if (plan.token_tile == 8 && blocks < chip.processors) plan.row_tile = 16;
  plan.wgmma = plan.token_tile == 128 && chip.has_wgmma() && p.w.number == GpuNumber::kBf16 &&
               kGroupedWgmmaSharedBytes <= chip.shared_bytes;
  return plan;
}

void PlaceMatrixRow(const GpuMatrix& w, int64_t row, const void* elements, uint8_t* matrix) {
  const int64_t bytes = w.k * w.element_bytes();
  const uint8_t* from = static_cast<const uint8_t*>(elements);
  if (!w.tiled) {
    std::memcpy(matrix + row * w.k_stride * w.element_bytes(), from, static_cast<size_t>(bytes));
    return;
  }
  const int64_t in_tile = row % GpuMatrix::kTileRows;
  uint8_t* tiles = matrix + row / GpuMatrix::kTileRows * w.tiles_k() * GpuMatrix::kTileBytes;
  for (int64_t b = 0; b < bytes; b += 16) {
    const int64_t chunk = b / 16 % 8;
    std::memcpy(
        tiles + b / 128 * GpuMatrix::kTileBytes + in_tile * 128 + (chunk ^ (in_tile % 8)) * 16,
        from + b, static_cast<size_t>(std::min<int64_t>(16, bytes - b)));
  }
}

}  // namespace lapidary
