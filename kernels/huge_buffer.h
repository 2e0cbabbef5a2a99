// Zeroed memory on huge pages. Weights must lie on them: on 4 KB pages a single-row product of q4
// loses a third of its bandwidth (155 instead of 104 us for 2816 x 2112; virtual machine, nested
// paging), because the hardware prefetcher stops at every page.
//
// Small buffers share huge pages, so that a model of thousands of small matrices (experts) is no
// larger in memory than its bytes. The memory of such a group goes back when its last buffer does.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace lapidary {

// Page aligned. data() is null when the system has no memory left. Thread-safe to create and
// destroy.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  explicit HugeBuffer(size_t bytes);
  HugeBuffer(HugeBuffer&& other) noexcept { *this = static_cast<HugeBuffer&&>(other); }
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<void> mapping_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// Memory of at least `bytes` that only grows; the contents are lost when it does. Ends the process
// when there is none: workspaces are sized before a request is admitted.
uint8_t* EnsureBytes(HugeBuffer& buffer, size_t bytes);

}  // namespace lapidary
