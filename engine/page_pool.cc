#include "engine/page_pool.h"

#include "common/base/check.h"

namespace lapidary {

PagePool::PagePool(int32_t total) : pages_(static_cast<size_t>(total)) {
  for (int32_t i = 0; i < total; ++i) {
    pages_[i].list = &free_;
    pages_[i].node = free_.insert(free_.end(), i);
  }
}

const PagePool::Page& PagePool::At(PageId page) const {
  LAPIDARY_CHECK(page.value >= 0 && page.value < total());
  return pages_[page.value];
}

void PagePool::Move(Page& page, List& list, List::iterator before) {
  list.splice(before, *page.list, page.node);  // no allocation; the iterator stays good
  page.list = &list;
}

PageId PagePool::Allocate() {
  LAPIDARY_CHECK(!free_.empty());
  const PageId id{free_.front()};
  Page& page = At(id);
  page.readers = 1;
  MoveToFront(page, used_);
  return id;
}

void PagePool::AddReader(PageId id) {
  Page& page = At(id);
  LAPIDARY_CHECK(page.list != &free_);
  if (++page.readers == 1) MoveToFront(page, used_);
  if (page.active() == 2) ++shared_;
}

void PagePool::Release(PageId id, Evict evict) {
  Page& page = At(id);
  LAPIDARY_CHECK(page.active() > 0);
  --page.readers;
  if (page.active() == 1) --shared_;
  if (page.readers > 0) return;
  if (!page.named) {
    MoveToFront(page, free_);
  } else {
    MoveToBack(page, evict == Evict::kSooner ? sooner_ : later_);
  }
}

void PagePool::MakeIdle(PageId id) {
  Page& page = At(id);
  LAPIDARY_CHECK(page.active() > 0);
  ++page.idle;
  if (page.active() == 1) --shared_;
}

void PagePool::MakeActive(PageId id) {
  Page& page = At(id);
  LAPIDARY_CHECK(page.idle > 0);
  --page.idle;
  if (page.active() == 2) ++shared_;
}

void PagePool::Name(PageId id) {
  Page& page = At(id);
  LAPIDARY_CHECK(page.readers > 0 && !page.named);
  page.named = true;
}

void PagePool::Unname(PageId id) {
  Page& page = At(id);
  LAPIDARY_CHECK(page.named);
  page.named = false;
  if (page.readers == 0) MoveToFront(page, free_);
}

void PagePool::Touch(PageId id) {
  Page& page = At(id);
  if (page.readers == 0 && page.named) MoveToBack(page, later_);
}

PageId PagePool::NextToEvict() const {
  LAPIDARY_CHECK(cached() > 0);
  return PageId{sooner_.empty() ? later_.front() : sooner_.front()};
}

}  // namespace lapidary
