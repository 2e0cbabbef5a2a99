#include <immintrin.h>

#include "kernels/attention/internal/tile.h"

namespace lapidary::attention_internal {
namespace {
#include "kernels/attention/internal/tile_kernel.inc.h"
}  // namespace

void RunTileAvx2(const TileTask& task, TileScratch& scratch) { RunTask(task, scratch); }

}  // namespace lapidary::attention_internal
