// Who owns which KV page. Two pools, one per family, each with its own count and lifetime.
//
// A sequence's table has one entry per 16 positions and only grows. Global pages live as long as
// the sequence. Sliding pages behind the window go back to the pool; their table entries stay,
// stale.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "common/base/dtype.h"
#include "common/base/ids.h"

namespace lapidary {

// Pages 0 to total - 1 of one family; each free, or owned by one sequence.
class PagePool {
 public:
  explicit PagePool(int32_t total);
  int32_t total() const { return static_cast<int32_t>(used_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t used() const { return total() - free(); }
  PageId Allocate();       // one must be free
  void Free(PageId page);  // must be allocated

 private:
  std::vector<int32_t> free_;  // a stack: the last freed, still warm in a cache, goes first
  std::vector<bool> used_;
};

// The pages of one sequence.
struct SequencePages {
  std::array<std::vector<PageId>, kKvFamilies> table;
  // Entries before it are stale (sliding: behind the window). Always 0 for global.
  std::array<int32_t, kKvFamilies> first_live = {0, 0};

  int32_t live(KvFamily family) const {
    const int f = static_cast<int>(family);
    return static_cast<int32_t>(table[f].size()) - first_live[f];
  }
};

class KvManager {
 public:
  // A family of 0 pages is absent and costs nothing, except sliding with a window: no layers of
  // that family is said by window = 0.
  KvManager(const std::array<int32_t, kKvFamilies>& pages, int32_t window);

  // Pages that a sequence whose KV reaches `len` positions holds at once: all of them for global,
  // at most what a window at its worst alignment touches for sliding (one query at a time; a longer
  // chunk needs more for one step, and is cut to what is free).
  std::array<int32_t, kKvFamilies> PagesAtLength(int32_t len) const;

  // The largest length, at most `wanted`, to which the tables can grow from the free pages.
  int32_t ReachableLength(const SequencePages& pages, int32_t wanted) const;
  // Grows the tables to cover [0, len), which must be reachable. Returns what was appended.
  std::array<std::vector<PageId>, kKvFamilies> Extend(SequencePages& pages, int32_t len);
  // Frees sliding pages that no query at position >= next_query reads.
  void FreeBehindWindow(SequencePages& pages, int32_t next_query);
  void FreeAll(SequencePages& pages);

  const PagePool& pool(KvFamily family) const { return pools_[static_cast<int>(family)]; }

 private:
  bool present(int family) const { return present_[family]; }

  const int32_t window_;
  const std::array<bool, kKvFamilies> present_;
  std::array<PagePool, kKvFamilies> pools_;
};

// Pages for positions [0, len).
inline int32_t PagesFor(int32_t len) {
  return static_cast<int32_t>((int64_t{len} + kPageTokens - 1) / kPageTokens);
}

// Pages that `span` neighbouring positions touch at the worst alignment.
inline int32_t PagesSpanned(int32_t span) { return span <= 0 ? 0 : PagesFor(span - 1) + 1; }

}  // namespace lapidary
