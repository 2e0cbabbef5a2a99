#include "kernels/huge_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "common/base/check.h"

namespace lapidary {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kShared = size_t{64} << 20;  // one mapping that small buffers share
constexpr size_t kSmall = size_t{16} << 20;   // larger ones waste at most an eighth on their own

size_t RoundUp(size_t v, size_t unit) { return (v + unit - 1) / unit * unit; }

// Whole huge pages, unmapped with the last owner. Touched pages alone take memory. Null: none left.
std::shared_ptr<void> Map(size_t bytes) {
  bytes = RoundUp(bytes, kHugePage);
  const size_t reserved = bytes + kHugePage;
  void* p = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  auto* begin = static_cast<uint8_t*>(p);
  const size_t address = reinterpret_cast<uintptr_t>(begin);
  const size_t skip = RoundUp(address, kHugePage) - address;  // back: what lies before the first
  if (skip > 0) munmap(begin, skip);
  begin += skip;
  munmap(begin + bytes, reserved - skip - bytes);
  madvise(begin, bytes, MADV_HUGEPAGE);  // a hint: without huge pages it works, only slower
  return {begin, [bytes](void* q) { munmap(q, bytes); }};
}

// Where the next small buffer goes. Memory is handed out once and never reused, so it is zero.
struct SharedMapping {
  std::mutex mutex;
  std::shared_ptr<void> current;
  size_t used = 0;
};

}  // namespace

HugeBuffer::HugeBuffer(size_t bytes) {
  if (bytes == 0 || bytes > SIZE_MAX / 2) return;
  if (bytes > kSmall) {
    mapping_ = Map(bytes);
    data_ = static_cast<uint8_t*>(mapping_.get());
  } else {
    static SharedMapping* const shared = new SharedMapping;  // outlives every static buffer
    const std::lock_guard<std::mutex> lock(shared->mutex);
    if (shared->current == nullptr || shared->used + bytes > kShared) {
      shared->current = Map(kShared);
      shared->used = 0;
    }
    if (shared->current == nullptr) return;
    mapping_ = shared->current;
    data_ = static_cast<uint8_t*>(mapping_.get()) + shared->used;
    shared->used += RoundUp(bytes, kPage);
  }
  if (data_ != nullptr) bytes_ = bytes;
}

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  mapping_ = std::move(other.mapping_);
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

uint8_t* EnsureBytes(HugeBuffer& buffer, size_t bytes) {
  if (buffer.bytes() < bytes) {
    const size_t grown = std::max(bytes, buffer.bytes() + buffer.bytes() / 2);
    buffer = HugeBuffer();  // first, so that both never exist at once
    buffer = HugeBuffer(grown);
    LAPIDARY_CHECK(buffer.data() != nullptr);
  }
  return buffer.data();
}

}  // namespace lapidary
