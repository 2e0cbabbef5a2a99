#include "kernels/gemm/internal/tile_vnni.inc.h"

namespace lapidary {
namespace {

constexpr TileSet Make() {
  TileSet set = {};
  set.max_rows = kVnniRows;
  Add<CodesQ8<false>>(set, 0);
  Add<CodesQ8Block16>(set, 1);
  AddNarrow<false>(set);
  Add<CodesQ8<true>>(set, kWidenedMin);
  return set;
}

}  // namespace

constinit const TileSet kVnniTiles = Make();

}  // namespace lapidary
