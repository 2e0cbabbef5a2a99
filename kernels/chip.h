// What a launcher must know of the device it launches on.
#pragma once

namespace lapidary {

struct Chip {
  int compute_capability = 80;  // 80, 89, 90, 100, 120
  int processors = 1;           // streaming multiprocessors
  int shared_bytes = 48 << 10;  // dynamic shared memory that one block may ask for

  bool has_bulk_copy() const { return compute_capability >= 90; }
  bool has_e4m3_mma() const { return compute_capability >= 89; }
  bool has_wgmma() const { return compute_capability == 90; }
};

}  // namespace lapidary
