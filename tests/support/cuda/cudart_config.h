// The machine that the stand-ins pretend to be. From the environment, read once:
//   SIMT_CC=80|89|90|100|120   the chip (90)       SIMT_DEVICES=n           devices (1; 0: none)
//   SIMT_DEVICE_MEM_MB=n       memory of each      SIMT_NO_DRIVER=1         every call fails with
//   35 SIMT_PROTECT=auto|keys|pages|off               how host code is kept from device memory
//   SIMT_PROGRESS_MS=n         work that nobody waits for runs after this time (20; 0: never)
//   SIMT_NO_PEERS=1            no device reaches another's memory
#pragma once
#include <cstddef>
#include <cstdint>

namespace lapidary::standin {

struct ChipSpec {
  int capability;  // 90
  const char* name;
  int processors;
  int shared_optin;       // bytes a block may have
  int shared_processor;   // bytes of a multiprocessor
  int threads_processor;  // resident
  int blocks_processor;   // resident
};

enum class Protection : uint8_t { kAuto, kKeys, kPages, kOff };

struct Config {
  bool driver = true;
  int devices = 1;
  ChipSpec chip{};
  size_t memory_bytes = size_t{2} << 30;
  Protection protection = Protection::kAuto;
  int progress_ms = 20;
  bool peers = true;  // devices reach each other's memory
};
const Config& GetConfig();

}  // namespace lapidary::standin
