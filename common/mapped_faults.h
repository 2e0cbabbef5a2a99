// Who reads a mapped file past its end gets SIGBUS: somebody truncated the file, or its disk
// failed. Nothing can go on then, but the reason can be said.
#pragma once
#include <cstddef>
#include <string_view>

namespace lapidary {

// From now on such a fault writes "NAME was truncated or its disk failed while it was mapped" to
// stderr and ends the process with status 1. Other causes of SIGBUS kill as before. Once, in main.
void InstallMappedFaultHandler();

// Names a mapping until it is forgotten. Any thread. Names beyond 511 bytes are cut; with more than
// 512 mappings at once the rest has none, and their faults kill without a word.
void NameMapping(const void* data, size_t size, std::string_view name);
void ForgetMapping(const void* data);

}  // namespace lapidary
