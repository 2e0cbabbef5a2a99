#include <immintrin.h>

#include "kernels/attention/internal/tile.h"

namespace lapidary::attention_internal {
namespace {
// Each needs the one before.
// clang-format off
#include "kernels/attention/internal/vector16.inc.h"
#include "kernels/attention/internal/score.inc.h"
#include "kernels/attention/internal/tile_kernel.inc.h"
// clang-format on
}  // namespace

void RunTileAvx512(const TileTask& task, TileScratch& scratch) { RunTask(task, scratch); }
void FoldRowAvx512(const TileTask& task, float* partial, int segments, int64_t stride, float* out) {
  FoldRow(task, partial, segments, stride, out);
}

}  // namespace lapidary::attention_internal
