// The block's shared memory. Filled with 0xff before a block begins: NaN in every float format.
#pragma once
#include <cstddef>

namespace lapidary::simt {

struct BlockState;

void ResetShared(BlockState& b);

// The static variable that `key` stands for; the first thread to ask places it.
void* SharedVariable(const void* key, size_t bytes, size_t alignment);

// [p, p + bytes) lies in shared memory that the kernel asked for.
bool InShared(const void* p, size_t bytes);

}  // namespace lapidary::simt
