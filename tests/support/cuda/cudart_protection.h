// Keeps host code from device memory: by memory protection keys where the processor has them (per
// thread, and cheap), else by page protection (per process).
#pragma once
#include <cstddef>

namespace lapidary::standin {

// Pages that become device memory, and that cease to be.
void ProtectPages(void* pages, size_t bytes);
void UnprotectPages(void* pages, size_t bytes);

// Whether a thread is kept out while another runs device work.
bool ProtectsThreads();

}  // namespace lapidary::standin
