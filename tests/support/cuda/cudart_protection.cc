#include "tests/support/cuda/cudart_protection.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "kernels/simt/fault.h"
#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/cudart_memory.h"

namespace lapidary::standin {
namespace {

// What SIMT_PROTECT and the processor come to.
struct Means {
  Protection protection;
  int key = -1;
};
const Means& Chosen() {
  static const Means means = [] {
    Means m{GetConfig().protection};
    if (m.protection == Protection::kAuto || m.protection == Protection::kKeys) {
      m.key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
      if (m.key < 0 && m.protection == Protection::kKeys) {
        fprintf(stderr, "[simt] SIMT_PROTECT=keys: there are no memory protection keys here\n");
        abort();
      }
      m.protection = m.key >= 0 ? Protection::kKeys : Protection::kPages;
    }
    return m;
  }();
  return means;
}

// Scopes open on this thread, by keys.
thread_local int depth = 0;

// By pages. A scope opens an allocation when it is first touched (which faults), and the last to
// end closes those: to open and close all memory at each launch took most of the emulation's time.
struct Range {
  size_t bytes = 0;
  bool open = false;
};
struct Pages {
  std::mutex mu;
  std::map<unsigned char*, Range> all;
  int scopes = 0;
};
Pages& AllPages() {
  static Pages* pages = new Pages;
  return *pages;
}

// Opens what was touched; false when it may not be. From the handler of a fault: its thread is at
// an access to device memory, where nobody holds the mutex. Allocates nothing.
bool OpenTouched(const void* address) {
  const int error = errno;
  auto* const p = static_cast<unsigned char*>(const_cast<void*>(address));
  Pages& pages = AllPages();
  std::lock_guard lock(pages.mu);
  auto it = pages.all.upper_bound(p);
  if (pages.scopes == 0 || it == pages.all.begin()) return false;
  --it;
  Range& range = it->second;
  if (p >= it->first + range.bytes) return false;
  if (!range.open) {  // else another thread was faster
    if (mprotect(it->first, range.bytes, PROT_READ | PROT_WRITE) != 0) return false;
    range.open = true;
  }
  errno = error;
  return true;
}

void Open() {
  const Means& means = Chosen();
  if (means.protection == Protection::kKeys) {
    if (depth++ == 0) pkey_set(means.key, 0);
  } else if (means.protection == Protection::kPages) {
    std::lock_guard lock(AllPages().mu);
    ++AllPages().scopes;
  }
}

void Close() {
  const Means& means = Chosen();
  if (means.protection == Protection::kKeys) {
    if (--depth == 0) pkey_set(means.key, PKEY_DISABLE_ACCESS);
  } else if (means.protection == Protection::kPages) {
    Pages& pages = AllPages();
    std::lock_guard lock(pages.mu);
    if (--pages.scopes > 0) return;
    for (auto& [p, range] : pages.all) {
      if (std::exchange(range.open, false)) mprotect(p, range.bytes, PROT_NONE);
    }
  }
}

}  // namespace

void ProtectPages(void* pages, size_t bytes) {
  const Means& means = Chosen();
  if (means.protection == Protection::kKeys) {
    if (pkey_mprotect(pages, bytes, PROT_READ | PROT_WRITE, means.key) != 0) {
      perror("[simt] pkey_mprotect");
      abort();
    }
  } else if (means.protection == Protection::kPages) {
    simt::MendFaultsWith(&OpenTouched);
    std::lock_guard lock(AllPages().mu);
    AllPages().all[static_cast<unsigned char*>(pages)] = {.bytes = bytes};
    mprotect(pages, bytes, PROT_NONE);
  }
}

void UnprotectPages(void* pages, size_t) {
  if (Chosen().protection != Protection::kPages) return;
  std::lock_guard lock(AllPages().mu);
  AllPages().all.erase(static_cast<unsigned char*>(pages));
}

bool ProtectsThreads() { return Chosen().protection == Protection::kKeys; }

DeviceAccess::DeviceAccess() { Open(); }
DeviceAccess::~DeviceAccess() { Close(); }
NoDeviceAccess::NoDeviceAccess() { Close(); }
NoDeviceAccess::~NoDeviceAccess() { Open(); }

}  // namespace lapidary::standin
