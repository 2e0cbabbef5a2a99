// Which addresses of this process are mapped files, so that pages that have been read can be given
// back: packing a checkpoint would otherwise hold file and packed weights in memory at once.
#pragma once
#include <cstdint>
#include <vector>

namespace lapidary {

class MappedRanges {
 public:
  // Empty: gives nothing back.
  MappedRanges() = default;
  // The mappings of files, read from /proc/self/maps now.
  static MappedRanges OfThisProcess();

  // Drops the whole pages in [data, data + bytes) from memory if they are a file's; they are read
  // again when touched. Anonymous memory, whose contents that would destroy, is left alone.
  void GiveBack(const uint8_t* data, int64_t bytes) const;

 private:
  struct Span {
    uintptr_t begin, end;
  };
  std::vector<Span> files_;  // ascending
};

}  // namespace lapidary
