// Who reads which KV page. Two pools, one per family, each with its own count and lifetime, and the
// prefix cache over both.
//
// A sequence's table has one entry per 16 positions and only grows. Global pages live as long as
// the sequence. Sliding pages behind the window leave it; their table entries stay, stale. A page
// that is left is free, or cached while a block of the prefix cache names it: then it still counts
// as available, and is evicted when a sequence needs it.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "common/base/dtype.h"
#include "common/base/ids.h"
#include "engine/page_pool.h"
#include "engine/prefix_cache.h"

namespace lapidary {

// The pages of one sequence.
struct SequencePages {
  std::array<std::vector<PageId>, kKvFamilies> table;
  // Entries before it are stale (sliding: behind the window). Always 0 for global.
  std::array<int32_t, kKvFamilies> first_live = {0, 0};
  PrefixPosition published;  // how far the prefix cache knows the sequence
  bool idle = false;         // nobody runs it, and its pages can be had: SetIdle

  int32_t live(KvFamily family) const {
    const int f = static_cast<int>(family);
    return static_cast<int32_t>(table[f].size()) - first_live[f];
  }
};

class KvManager {
 public:
  // A family of 0 pages is absent and costs nothing, except sliding with a window: no layers of
  // that family is said by window = 0.
  KvManager(const std::array<int32_t, kKvFamilies>& pages, int32_t window,
            bool prefix_cache = false, BlockHash hash = HashBlock);

  // Pages that a sequence whose KV reaches `len` positions holds at once: all of them for global,
  // at most what a window at its worst alignment touches for sliding (one query at a time; a longer
  // chunk needs more for one step, and is cut to what is available).
  std::array<int32_t, kKvFamilies> PagesAtLength(int32_t len) const;

  // The largest length, at most `wanted`, to which the tables can grow from the available pages.
  int32_t ReachableLength(const SequencePages& pages, int32_t wanted) const;
  // Grows the tables to cover [0, len), which must be reachable, evicting cached pages when none is
  // free. Returns what was appended.
  std::array<std::vector<PageId>, kKvFamilies> Extend(SequencePages& pages, int32_t len);
  // Leaves sliding pages that no query at position >= next_query reads. With a prefix cache, those
  // that the end of the last full page needs to be resumed at stay until the next page is full:
  // at most 15 tokens longer, and never more pages than PagesAtLength says.
  void FreeBehindWindow(SequencePages& pages, int32_t next_query);
  // Leaves all pages. No submitted step may still read them.
  void FreeAll(SequencePages& pages);
  // A sequence that is set aside keeps its pages until somebody lacks some, so that what only such
  // sequences share is not counted as shared.
  void SetIdle(SequencePages& pages, bool idle);

  // The prefix cache; without one these do nothing. Tokens are the sequence's from position 0, and
  // `key` names those that it shares with.
  //
  // Gives an empty sequence the pages of the longest known prefix that it can be resumed after, of
  // at most min(limit, tokens.size() - 1) tokens: the last token is always computed, for its
  // logits. Returns how many tokens, a multiple of 16. Sliding entries behind the window are page 0
  // and stale.
  int32_t Attach(SequencePages& pages, std::string_view key, std::span<const TokenId> tokens,
                 int32_t limit);
  // Makes the full pages of the first `computed_len` tokens findable: completed steps have written
  // them, and nobody will again. Before FreeBehindWindow, so that what leaves can be kept.
  void Publish(SequencePages& pages, std::string_view key, std::span<const TokenId> tokens,
               int32_t computed_len);

  const PagePool& pool(KvFamily family) const { return pools_[static_cast<int>(family)]; }
  // Pages that a sequence can get: free or cached.
  int32_t available(KvFamily family) const { return pool(family).available(); }
  // How many global pages at a sequence's beginning active others read too. Exact but where two
  // computed the same block and only one copy is shared: then perhaps a few too many.
  int32_t SharedGlobalPages(const SequencePages& pages) const;
  int64_t evicted_pages() const { return cache_ ? cache_->evicted_pages() : 0; }
  bool has_prefix_cache() const { return cache_.has_value(); }

 private:
  bool present(int family) const { return present_[family]; }
  void Release(int family, PageId page, bool passed_over);

  const int32_t window_;
  const std::array<bool, kKvFamilies> present_;
  std::array<PagePool, kKvFamilies> pools_;
  std::optional<PrefixCache> cache_;
};

}  // namespace lapidary
