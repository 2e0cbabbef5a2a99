#include "engine/kv_manager.h"

#include <algorithm>

#include "common/base/check.h"

namespace lapidary {

namespace {
constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);
}  // namespace

PagePool::PagePool(int32_t total) : used_(static_cast<size_t>(total), false) {
  free_.reserve(static_cast<size_t>(total));
  for (int32_t page = total - 1; page >= 0; --page) free_.push_back(page);
}

PageId PagePool::Allocate() {
  LAPIDARY_CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  used_[page] = true;
  return PageId{page};
}

void PagePool::Free(PageId page) {
  LAPIDARY_CHECK(page.value >= 0 && page.value < total() && used_[page.value]);
  used_[page.value] = false;
  free_.push_back(page.value);
}

KvManager::KvManager(const std::array<int32_t, kKvFamilies>& pages, int32_t window)
    : window_(window),
      present_{window > 0, pages[kGlobal] > 0},
      pools_{PagePool(window > 0 ? pages[kSliding] : 0), PagePool(pages[kGlobal])} {}

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
    const int64_t entries = static_cast<int64_t>(pages.table[f].size()) + pools_[f].free();
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
      const PageId page = pools_[f].Allocate();
      pages.table[f].push_back(page);
      added[f].push_back(page);
    }
  }
  return added;
}

void KvManager::FreeBehindWindow(SequencePages& pages, int32_t next_query) {
  if (!present(kSliding)) return;
  // A query at q reads keys q - window + 1 to q; later queries read none before that.
  const int32_t first_key = std::max(next_query - window_ + 1, 0);
  const auto entries = static_cast<int32_t>(pages.table[kSliding].size());
  const int32_t first_live = std::min(first_key / kPageTokens, entries);
  for (int32_t& i = pages.first_live[kSliding]; i < first_live; ++i) {
    pools_[kSliding].Free(pages.table[kSliding][i]);
  }
}

void KvManager::FreeAll(SequencePages& pages) {
  for (int f = 0; f < kKvFamilies; ++f) {
    for (size_t i = pages.first_live[f]; i < pages.table[f].size(); ++i) {
      pools_[f].Free(pages.table[f][i]);
    }
  }
  pages = SequencePages();
}

}  // namespace lapidary
