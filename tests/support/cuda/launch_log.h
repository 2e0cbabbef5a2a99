// Which kernels a process has launched, for scripts/kernel_report.py.
#pragma once

namespace lapidary::standin {

// With SIMT_LAUNCHES=<folder> a process writes <folder>/<pid> when it ends: a line "<offset in the
// binary, hexadecimal> <binary>" for each kernel that it launched. The script knows a kernel's name
// by its offset: kernels are internal symbols.
void NoteLaunch(const void* function);

}  // namespace lapidary::standin
