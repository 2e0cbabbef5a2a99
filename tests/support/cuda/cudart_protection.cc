#include "tests/support/cuda/cudart_protection.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

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

// By pages: all of them at once.
struct Pages {
  std::mutex mu;
  std::map<void*, size_t> all;
  int open = 0;
};
Pages& AllPages() {
  static Pages* pages = new Pages;
  return *pages;
}
void SetPages(int protection) {
  for (const auto& [pages, bytes] : AllPages().all) mprotect(pages, bytes, protection);
}

void Open() {
  const Means& means = Chosen();
  if (means.protection == Protection::kKeys) {
    if (depth++ == 0) pkey_set(means.key, 0);
  } else if (means.protection == Protection::kPages) {
    std::lock_guard lock(AllPages().mu);
    if (AllPages().open++ == 0) SetPages(PROT_READ | PROT_WRITE);
  }
}

void Close() {
  const Means& means = Chosen();
  if (means.protection == Protection::kKeys) {
    if (--depth == 0) pkey_set(means.key, PKEY_DISABLE_ACCESS);
  } else if (means.protection == Protection::kPages) {
    std::lock_guard lock(AllPages().mu);
    if (--AllPages().open == 0) SetPages(PROT_NONE);
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
    std::lock_guard lock(AllPages().mu);
    AllPages().all[pages] = bytes;
    if (AllPages().open == 0) mprotect(pages, bytes, PROT_NONE);
  }
}

void UnprotectPages(void* pages, size_t) {
  if (Chosen().protection != Protection::kPages) return;
  std::lock_guard lock(AllPages().mu);
  AllPages().all.erase(pages);
}

bool ProtectsThreads() { return Chosen().protection == Protection::kKeys; }

DeviceAccess::DeviceAccess() { Open(); }
DeviceAccess::~DeviceAccess() { Close(); }
NoDeviceAccess::NoDeviceAccess() { Close(); }
NoDeviceAccess::~NoDeviceAccess() { Open(); }

}  // namespace lapidary::standin
