#include "engine/kv_manager.h"

#include <algorithm>

#include "common/base/check.h"

namespace lapidary {

namespace {
constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);
}  // namespace

KvManager::KvManager(const std::array<int32_t, kKvFamilies>& pages, int32_t window,
                     bool prefix_cache, BlockHash hash)
    : window_(window),
      present_{window > 0, pages[kGlobal] > 0},
      pools_{PagePool(window > 0 ? pages[kSliding] : 0), PagePool(pages[kGlobal])} {
  if (prefix_cache) cache_.emplace(pools_, present_, window_, hash);
}

std::array<int32_t, kKvFamilies> KvManager::PagesAtLength(int32_t len) const {
  std::array<int32_t, kKvFamilies> need = {0, 0};
  if (present(kSliding)) need[kSliding] = std::min(PagesFor(len), PagesSpanned(window_));
  if (present(kGlobal)) need[kGlobal] = PagesFor(len);
  return need;
}

int32_t KvManager::ReachableLength(const SequencePages& pages, int32_t wanted) const {
  int64_t reach = wanted;
  for (int f = 0; f < kKvFamilies; ++f) {
    if (!present(f)) continue;
    const int64_t entries = static_cast<int64_t>(pages.table[f].size()) + pools_[f].available();
    reach = std::min(reach, entries * kPageTokens);
  }
  return static_cast<int32_t>(reach);
}

std::array<std::vector<PageId>, kKvFamilies> KvManager::Extend(SequencePages& pages, int32_t len) {
  std::array<std::vector<PageId>, kKvFamilies> added;
  for (int f = 0; f < kKvFamilies; ++f) {
    if (!present(f)) continue;
    const auto entries = static_cast<size_t>(PagesFor(len));
    while (pages.table[f].size() < entries) {
      if (pools_[f].free() == 0 && cache_) cache_->EvictOne(static_cast<KvFamily>(f));
      const PageId page = pools_[f].Allocate();
      pages.table[f].push_back(page);
      added[f].push_back(page);
    }
  }
  return added;
}

void KvManager::FreeBehindWindow(SequencePages& pages, int32_t next_query) {
  if (!present(kSliding)) return;
  const int32_t query = cache_ ? next_query / kPageTokens * kPageTokens : next_query;
  const auto entries = static_cast<int32_t>(pages.table[kSliding].size());
  const int32_t first_live = std::min(FirstPageRead(query, window_), entries);
  for (int32_t& i = pages.first_live[kSliding]; i < first_live; ++i) {
    Release(kSliding, pages.table[kSliding][i], /*passed_over=*/true);
  }
}

void KvManager::FreeAll(SequencePages& pages) {
  SetIdle(pages, false);
  for (int f = 0; f < kKvFamilies; ++f) {
    for (size_t i = pages.first_live[f]; i < pages.table[f].size(); ++i) {
      Release(f, pages.table[f][i], /*passed_over=*/false);
    }
  }
  if (cache_) cache_->Touch(pages.published);
  pages = SequencePages();
}

void KvManager::SetIdle(SequencePages& pages, bool idle) {
  if (pages.idle == idle) return;
  pages.idle = idle;
  for (const PageId page : pages.table[kGlobal]) {
    idle ? pools_[kGlobal].MakeIdle(page) : pools_[kGlobal].MakeActive(page);
  }
}

void KvManager::Release(int family, PageId page, bool passed_over) {
  if (cache_) {
    cache_->Release(static_cast<KvFamily>(family), page, passed_over);
  } else {
    pools_[family].Release(page);
  }
}

int32_t KvManager::SharedGlobalPages(const SequencePages& pages) const {
  const std::vector<PageId>& table = pages.table[kGlobal];
  const int32_t own = pages.idle ? 0 : 1;
  // Who reads a block reads those before it: the shared pages come first.
  const auto end = std::partition_point(table.begin(), table.end(), [&](PageId page) {
    return pools_[kGlobal].active_readers(page) > own;
  });
  return static_cast<int32_t>(end - table.begin());
}

int32_t KvManager::Attach(SequencePages& pages, std::string_view key,
                          std::span<const TokenId> tokens, int32_t limit) {
  LAPIDARY_CHECK(pages.table[kSliding].empty() && pages.table[kGlobal].empty());
  if (!cache_ || tokens.empty()) return 0;
  limit = std::clamp(limit, 0, static_cast<int32_t>(tokens.size()) - 1);
  PrefixCache::Found found = cache_->Find(key, tokens, limit / kPageTokens);
  for (int f = 0; f < kKvFamilies; ++f) {
    for (PageId& page : found.table[f]) {
      if (page != kNoPage) {
        pools_[f].AddReader(page);
      } else {
        page = PageId{0};
        ++pages.first_live[f];
      }
    }
    pages.table[f] = std::move(found.table[f]);
  }
  pages.published = found.position;
  return found.position.blocks * kPageTokens;
}

void KvManager::Publish(SequencePages& pages, std::string_view key, std::span<const TokenId> tokens,
                        int32_t computed_len) {
  if (!cache_) return;
  LAPIDARY_CHECK(computed_len <= static_cast<int32_t>(tokens.size()));
  cache_->Publish(pages.published, key, tokens, computed_len / kPageTokens,
                  PageTables{pages.table, pages.first_live});
}

}  // namespace lapidary
