#include "worker/mapped_ranges.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>

namespace lapidary {

MappedRanges MappedRanges::OfThisProcess() {
  MappedRanges ranges;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uint64_t begin = 0, end = 0, inode = 0;
    char permissions[5] = {};
    // begin-end perms offset device inode path
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %*s %*s %" SCNu64, &begin, &end,
                    permissions, &inode) != 4) {
      continue;
    }
    if (inode == 0 || permissions[1] == 'w') continue;  // a written private page would be lost
    ranges.files_.push_back({static_cast<uintptr_t>(begin), static_cast<uintptr_t>(end)});
  }
  return ranges;
}

void MappedRanges::GiveBack(const uint8_t* data, int64_t bytes) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin >= end) return;
  for (const Span& span : files_) {
    if (span.begin <= begin && end <= span.end) {
      madvise(const_cast<uint8_t*>(data) + (begin - address), end - begin, MADV_DONTNEED);
      return;
    }
  }
}

}  // namespace lapidary
