// Zeroed memory on huge pages where they pay: whole 2 MB extents are asked for as huge pages, the
// rest stays on small ones, so that hundreds of small matrices waste nothing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace lapidary {

// 64-byte aligned (in fact page aligned). data() is null when the system has no memory left.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  explicit HugeBuffer(size_t bytes);
  uint8_t* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(uint8_t* p) const;
  };
  std::unique_ptr<uint8_t, Unmap> data_;
  size_t bytes_ = 0;
};

// Memory of at least `bytes` that only grows; the contents are lost when it does. Ends the process
// when there is none: workspaces are sized before a request is admitted.
uint8_t* EnsureBytes(HugeBuffer& buffer, size_t bytes);

}  // namespace lapidary
