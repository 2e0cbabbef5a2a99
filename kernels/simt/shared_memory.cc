#include "kernels/simt/shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"

#ifdef LAPIDARY_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#define LAPIDARY_POISON(p, n) __asan_poison_memory_region(p, n)
#define LAPIDARY_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define LAPIDARY_POISON(p, n) (void)0
#define LAPIDARY_UNPOISON(p, n) (void)0
#endif

namespace lapidary::simt {
namespace {

#ifdef LAPIDARY_SIMT_ASAN
constexpr size_t kRedZone = 64;  // between variables
#else
constexpr size_t kRedZone = 0;
#endif

size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

void ResetShared(BlockState& b) {
  if (!b.shared) {
    void* arena = mmap(nullptr, kArenaBytes + 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED) {
      perror("[simt] shared memory");
      abort();
    }
    b.shared = static_cast<unsigned char*>(arena);
    mprotect(b.shared + kArenaBytes, 4096, PROT_NONE);
  }
  b.variables.clear();
  b.shared_used = b.dynamic_bytes;
  LAPIDARY_POISON(b.shared, kArenaBytes);
  LAPIDARY_UNPOISON(b.shared, b.dynamic_bytes);
  memset(b.shared, 0xff, b.dynamic_bytes);
}

void* SharedVariable(const void* key, size_t bytes, size_t alignment) {
  BlockState& b = CurrentBlock();
  for (const BlockState::Variable& v : b.variables) {
    if (v.key == key) return b.shared + v.offset;
  }
  const size_t offset = RoundUp(b.shared_used + kRedZone, std::max<size_t>(alignment, 16));
  if (offset + bytes > kArenaBytes) {
    fprintf(stderr, "[simt] kernel %s: static shared memory does not fit\n", b.kernel);
    abort();
  }
  b.shared_used = offset + bytes;
  LAPIDARY_UNPOISON(b.shared + offset, bytes);
  memset(b.shared + offset, 0xff, bytes);
  b.variables.push_back({key, offset});
  return b.shared + offset;
}

bool InShared(const void* p, size_t bytes) {
  const BlockState& b = CurrentBlock();
  const auto* q = static_cast<const unsigned char*>(p);
  return q >= b.shared && q + bytes <= b.shared + b.shared_used;
}

}  // namespace lapidary::simt
