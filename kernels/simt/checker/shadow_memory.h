// What is known of the last accesses to memory: one cell per 16 bytes, split into smaller ones
// where accesses are smaller.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lapidary::simt {

// An access in the past. Generation 0: there was none.
struct PastAccess {
  uint32_t generation = 0;
  uint32_t epoch = 0;
  uint32_t place = 0;
  uint16_t agent = 0;
};

struct Cell {
  PastAccess write, atomic, read;  // the last of each; atomic and read: since the last write
  // Epochs of all readers (of all atomic writers) of this generation, where one does not tell all.
  // 0: none.
  uint32_t read_set = 0, atomic_set = 0;
  bool in_flight = false;            // an asynchronous copy is still writing
  bool read_by_other_block = false;  // earlier in this launch
};

struct Granule {
  uint32_t generation = 0;  // in which it was last made anew
  uint8_t cell_log2 = 4;    // bytes a cell
  Cell whole;
  Cell* cells = nullptr;  // 16 >> cell_log2 of them, where they are smaller than 16 bytes
};

// Memory for the split cells of one block, or of one launch.
class CellPool {
 public:
  Cell* Take(size_t cells);
  void Clear() { used_ = 0; }

 private:
  static constexpr size_t kChunk = 1 << 12;
  std::vector<std::vector<Cell>> chunks_;
  size_t used_ = 0;  // cells, chunk by chunk
};

// Sets of (agent, epoch), of the present generation.
class EpochSets {
 public:
  void Begin(uint32_t agents) {
    agents_ = agents;
    Clear();
  }
  void Clear() {
    used_ = 1;
    free_.clear();
  }
  uint32_t New();
  void Free(uint32_t set) { free_.push_back(set); }
  uint32_t* Epochs(uint32_t set) { return &epochs_[size_t{set} * agents_]; }
  uint32_t agents() const { return agents_; }

 private:
  uint32_t agents_ = 0;
  uint32_t used_ = 1;
  std::vector<uint32_t> epochs_;
  std::vector<uint32_t> free_;
};

// Calls f(cell) for the cells of [offset, offset + bytes) of a granule, split as finely as needed.
// `stale`: granules of older generations count as untouched.
template <class F>
void ForCells(Granule& g, CellPool& pool, uint32_t stale, uint32_t now, uint32_t offset,
              uint32_t bytes, F f);
void SplitGranule(Granule& g, CellPool& pool, uint8_t cell_log2);

// The largest power of two that divides offset and bytes.
inline uint8_t CellLog2(uint32_t offset, uint32_t bytes) {
  return static_cast<uint8_t>(__builtin_ctz(offset | bytes | 16));
}

template <class F>
void ForCells(Granule& g, CellPool& pool, uint32_t stale, uint32_t now, uint32_t offset,
              uint32_t bytes, F f) {
  const uint8_t wanted = CellLog2(offset, bytes);
  if (g.generation < stale) {
    g = Granule{};
    g.generation = now;
    if (wanted < 4) SplitGranule(g, pool, wanted);
  } else if (wanted < g.cell_log2) {
    SplitGranule(g, pool, wanted);
  }
  if (g.cell_log2 == 4) {
    f(g.whole);
    return;
  }
  const uint32_t end = (offset + bytes) >> g.cell_log2;
  for (uint32_t i = offset >> g.cell_log2; i < end; ++i) f(g.cells[i]);
}

}  // namespace lapidary::simt
