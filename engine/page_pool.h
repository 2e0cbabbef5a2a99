// The pages of one KV family: how many sequences read each, and which of those that nobody reads
// goes first when room is needed.
//
//   free    nobody reads it, no cached block names it: its content means nothing
//   used    read by one sequence or more; only its first reader ever writes it
//   cached  nobody reads it, but a cached block names it: found again, or evicted
//
// free + used + cached = total, because each page is in exactly one list.
#pragma once
#include <algorithm>
#include <cstdint>
#include <list>
#include <utility>
#include <vector>

#include "common/base/dtype.h"
#include "common/base/ids.h"

namespace lapidary {

// Pages for positions [0, len).
inline int32_t PagesFor(int32_t len) {
  return static_cast<int32_t>((int64_t{len} + kPageTokens - 1) / kPageTokens);
}

// Pages that `span` neighbouring positions touch at the worst alignment.
inline int32_t PagesSpanned(int32_t span) { return span <= 0 ? 0 : PagesFor(span - 1) + 1; }

// The first page that a query at `position` reads, or any later one: it attends to itself and the
// window - 1 positions before it.
inline int32_t FirstPageRead(int32_t position, int32_t window) {
  return std::max(position - window + 1, 0) / kPageTokens;
}

// How soon a cached page is evicted: all of the first kind before any of the second; within a kind,
// the one that was longest not used.
enum class Evict : uint8_t { kSooner, kLater };

class PagePool {
 public:
  explicit PagePool(int32_t total);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int32_t total() const { return static_cast<int32_t>(pages_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t used() const { return static_cast<int32_t>(used_.size()); }
  int32_t cached() const { return static_cast<int32_t>(sooner_.size() + later_.size()); }
  int32_t available() const { return free() + cached(); }  // to a sequence that needs pages
  int32_t shared() const { return shared_; }               // with two active readers or more

  PageId Allocate();            // one must be free; it gets its first reader
  void AddReader(PageId page);  // used or cached
  // Takes one reader away. After the last one the page is cached when it is named, else free.
  void Release(PageId page, Evict evict = Evict::kLater);
  // An active reader becomes an idle one, who would leave if asked; and active again.
  void MakeIdle(PageId page);
  void MakeActive(PageId page);
  void Name(PageId page);      // used, and no block names it yet
  void Unname(PageId page);    // is free then, unless somebody reads it
  void Touch(PageId page);     // of a cached page: as if released now. Of others: nothing
  PageId NextToEvict() const;  // one must be cached

  int32_t readers(PageId page) const { return At(page).readers; }
  int32_t active_readers(PageId page) const { return At(page).active(); }
  bool named(PageId page) const { return At(page).named; }

 private:
  using List = std::list<int32_t>;
  struct Page {
    int32_t readers = 0;
    int32_t idle = 0;  // of them
    bool named = false;
    List* list = nullptr;  // the one it is in
    List::iterator node;

    int32_t active() const { return readers - idle; }
  };
  const Page& At(PageId page) const;
  Page& At(PageId page) { return const_cast<Page&>(std::as_const(*this).At(page)); }
  void MoveToFront(Page& page, List& list) { Move(page, list, list.begin()); }
  void MoveToBack(Page& page, List& list) { Move(page, list, list.end()); }
  static void Move(Page& page, List& list, List::iterator before);

  std::vector<Page> pages_;
  List free_;  // a stack: the last freed, still warm in a processor's cache, goes first
  List used_;
  int32_t shared_ = 0;
  List sooner_, later_;  // cached: the one released longest ago is at the front
};

}  // namespace lapidary
