// What device code sees of the thread and the block it runs in.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>

namespace lapidary::simt {

// The block's shared memory: the dynamic part, then static variables as they are first used. More
// than any chip has (227 KiB).
inline constexpr size_t kArenaBytes = 256 << 10;

struct Block {
  uint3 index{};
  dim3 size, grid;
  const char* kernel = "";
  unsigned char* shared = nullptr;
  size_t dynamic_bytes = 0;
  size_t shared_used = 0;  // dynamic and static
  // The kernel's arguments.
  const unsigned char* parameters = nullptr;
  size_t parameter_bytes = 0;
  // Global memory, through the wrappers of device.h.
  int64_t bytes_read = 0, bytes_written = 0;
};

struct Thread {
  uint3 index{};
  uint32_t linear = 0, lane = 0, warp = 0;
  Block* block = nullptr;
};

// Null outside a kernel. Static TLS also in a library that is dlopen'ed: eight bytes.
extern thread_local constinit Thread* current_thread __attribute__((tls_model("initial-exec")));

}  // namespace lapidary::simt
