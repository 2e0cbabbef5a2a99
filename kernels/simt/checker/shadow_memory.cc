#include "kernels/simt/checker/shadow_memory.h"

#include <algorithm>

namespace lapidary::simt {

Cell* CellPool::Take(size_t cells) {
  if (used_ % kChunk + cells > kChunk) used_ = (used_ / kChunk + 1) * kChunk;
  const size_t chunk = used_ / kChunk;
  if (chunk == chunks_.size()) chunks_.emplace_back(kChunk);
  Cell* first = &chunks_[chunk][used_ % kChunk];
  used_ += cells;
  return first;
}

uint32_t EpochSets::New() {
  uint32_t set = used_;
  if (free_.empty()) {
    ++used_;
  } else {
    set = free_.back();
    free_.pop_back();
  }
  if (epochs_.size() < size_t{used_} * agents_) epochs_.resize(2 * size_t{used_} * agents_);
  std::fill_n(Epochs(set), agents_, 0);
  return set;
}

void SplitGranule(Granule& g, CellPool& pool, uint8_t cell_log2) {
  const uint32_t count = 16u >> cell_log2;
  Cell* cells = pool.Take(count);
  for (uint32_t i = 0; i < count; ++i) {
    cells[i] = g.cell_log2 == 4 ? g.whole : g.cells[i >> (g.cell_log2 - cell_log2)];
  }
  g.cells = cells;
  g.cell_log2 = cell_log2;
}

}  // namespace lapidary::simt
