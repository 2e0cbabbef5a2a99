// How the memory system would see a kernel: per source line, the wavefronts of shared-memory
// requests (bank conflicts) and the 32-byte sectors of global ones.
//
// Lanes' accesses from one place are one request when they are each lane's n-th since the warp last
// met. Exact for the vector wrappers; host compilers may split or merge scalar accesses.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/simt/report.h"

namespace lapidary::simt {

class TrafficLog {
 public:
  void BeginBlock(const char* kernel, size_t warps);
  void Add(uint32_t warp, uint32_t lane, uint32_t place, const void* p, size_t bytes, bool shared,
           bool write);
  // The lanes of the warp have met: the next accesses are new requests.
  void Flush(uint32_t warp);
  void FlushAll();

 private:
  struct Request {
    uintptr_t address[32];
    uint32_t lanes = 0;
    uint32_t bytes = 0;
  };
  struct PlaceLog {
    std::vector<Request> requests;
    uint32_t next[32] = {};  // request of each lane
    bool shared = false, write = false;
  };
  std::string kernel_;
  std::vector<std::unordered_map<uint64_t, PlaceLog>> warps_;  // by place
};

namespace traffic {
// Of all launches since the last reset.
std::vector<LineTraffic> Of(const std::string& kernel);
void Reset();
// Whether anybody asked: SIMT_PERF_REPORT=1, or WantTraffic().
bool Wanted();
void Want(bool wanted);
}  // namespace traffic

}  // namespace lapidary::simt
