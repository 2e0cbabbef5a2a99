#include "kernels/huge_buffer.h"

#include <sys/mman.h>

#include <algorithm>

#include "common/base/check.h"

namespace lapidary {

namespace {
constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

size_t RoundUp(size_t v, size_t unit) { return (v + unit - 1) / unit * unit; }
}  // namespace

HugeBuffer::HugeBuffer(size_t bytes) {
  if (bytes == 0 || bytes > SIZE_MAX / 2) return;
  // Small buffers: pages. Larger ones: begin at a huge page, and let a tail that fills three
  // quarters of one be huge too.
  const bool huge = bytes >= kHugePage * 3 / 4;
  size_t mapped = RoundUp(bytes, kPage);
  if (huge && mapped % kHugePage >= kHugePage * 3 / 4) mapped = RoundUp(mapped, kHugePage);
  const size_t reserved = huge ? mapped + kHugePage : mapped;
  void* p = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return;
  auto* begin = static_cast<uint8_t*>(p);
  if (huge) {  // gives back what lies before the first huge page and behind the last
    const size_t skip =
        RoundUp(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
    if (skip > 0) munmap(begin, skip);
    begin += skip;
    if (reserved - skip > mapped) munmap(begin + mapped, reserved - skip - mapped);
    if (mapped >= kHugePage) madvise(begin, mapped / kHugePage * kHugePage, MADV_HUGEPAGE);
  }
  data_ = std::unique_ptr<uint8_t, Unmap>(begin, Unmap{mapped});
  bytes_ = bytes;
}

void HugeBuffer::Unmap::operator()(uint8_t* p) const { munmap(p, bytes); }

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
