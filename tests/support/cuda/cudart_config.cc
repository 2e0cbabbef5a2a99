#include "tests/support/cuda/cudart_config.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lapidary::standin {
namespace {

constexpr ChipSpec kChips[] = {
    {80, "SIMT executor as sm_80", 108, 166912, 167936, 2048, 32},
    {89, "SIMT executor as sm_89", 142, 101376, 102400, 1536, 24},
    {90, "SIMT executor as sm_90", 132, 232448, 233472, 2048, 32},
    {100, "SIMT executor as sm_100", 148, 232448, 233472, 2048, 32},
    {120, "SIMT executor as sm_120", 170, 101376, 102400, 1536, 24},
};

[[noreturn]] void Refuse(const char* name, const char* value) {
  fprintf(stderr, "[simt] %s=%s is not understood\n", name, value);
  abort();
}

long Number(const char* name, long otherwise, long most) {
  const char* v = getenv(name);
  if (!v) return otherwise;
  char* end = nullptr;
  const long n = strtol(v, &end, 10);
  if (end == v || *end != 0 || n < 0 || n > most) Refuse(name, v);
  return n;
}

Config FromEnvironment() {
  Config c;
  c.driver = Number("SIMT_NO_DRIVER", 0, 1) == 0;
  c.peers = Number("SIMT_NO_PEERS", 0, 1) == 0;
  c.devices = static_cast<int>(Number("SIMT_DEVICES", 1, 16));
  c.memory_bytes = static_cast<size_t>(Number("SIMT_DEVICE_MEM_MB", 2048, 1 << 20)) << 20;
  c.progress_ms = static_cast<int>(Number("SIMT_PROGRESS_MS", 20, 1 << 20));
  const long capability = Number("SIMT_CC", 90, 999);
  for (const ChipSpec& chip : kChips) {
    if (chip.capability == capability) c.chip = chip;
  }
  if (c.chip.capability == 0) Refuse("SIMT_CC", getenv("SIMT_CC"));
  if (const char* v = getenv("SIMT_PROTECT")) {
    if (!strcmp(v, "auto")) {
      c.protection = Protection::kAuto;
    } else if (!strcmp(v, "keys")) {
      c.protection = Protection::kKeys;
    } else if (!strcmp(v, "pages")) {
      c.protection = Protection::kPages;
    } else if (!strcmp(v, "off")) {
      c.protection = Protection::kOff;
    } else {
      Refuse("SIMT_PROTECT", v);
    }
  }
  return c;
}

}  // namespace

const Config& GetConfig() {
  static const Config config = FromEnvironment();
  return config;
}

}  // namespace lapidary::standin
