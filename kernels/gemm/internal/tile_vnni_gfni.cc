#include "kernels/gemm/internal/tile_vnni.inc.h"

namespace lapidary {
namespace {

constexpr TileSet Make() {
  TileSet set = {};
  set.max_rows = kVnniRows;
  AddNarrow<true>(set);
  return set;
}

}  // namespace

constinit const TileSet kVnniGfniTiles = Make();

}  // namespace lapidary
