// A kernel that touches memory which is not there ends as a mistake of the kernel, and not the
// process. Host code that touches device memory is told so before it dies.
#pragma once
#include <cstddef>

namespace lapidary::simt {

// Once per process, and for the calling thread.
void CatchFaults();

// Whether a mistake of this OS thread since the last call was a fault.
bool TakeFault();

// Makes an address accessible, after which the access is tried again; or says that it may not be.
// Called from a signal handler.
void MendFaultsWith(bool (*mend)(const void* p));

// Says what an address is: " (16 bytes behind ...)" or "". Called from a signal handler.
void DescribeFaultsWith(void (*describe)(const void* p, char* text, size_t size));

}  // namespace lapidary::simt
