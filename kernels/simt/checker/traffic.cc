#include "kernels/simt/checker/traffic.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <tuple>

#include "kernels/simt/checker/places.h"

namespace lapidary::simt {
namespace {

struct Line {
  int bytes = 0;
  int64_t requests = 0, units = 0, ideal = 0;
};
// kernel, place, shared, write
using LineKey = std::tuple<std::string, uint32_t, bool, bool>;
struct Lines {
  std::mutex mu;
  std::map<LineKey, Line> by_key;
};
Lines& AllLines() {
  static Lines* lines = new Lines;
  return *lines;
}

void PrintReport() {
  fprintf(stderr, "%-28s %-28s %-6s %-5s %5s %10s %8s %8s\n", "kernel", "line", "space", "op",
          "bytes", "requests", "per req", "ideal");
  for (const LineTraffic& t : traffic::Of("")) {
    const double requests = static_cast<double>(t.requests);
    fprintf(stderr, "%-28s %-28s %-6s %-5s %5d %10ld %8.2f %8.2f%s\n", t.kernel.c_str(),
            t.line.c_str(), t.shared ? "shared" : "global", t.write ? "write" : "read", t.bytes,
            static_cast<long>(t.requests), static_cast<double>(t.units) / requests,
            static_cast<double>(t.ideal) / requests,
            t.units <= t.ideal ? ""
            : t.shared         ? "  <-- bank conflicts"
                               : "  <-- uncoalesced");
  }
}

std::atomic<bool>& WantedFlag() {
  static std::atomic<bool> wanted = [] {
    const char* v = getenv("SIMT_PERF_REPORT");
    if (!v || v[0] == '0') return false;
    atexit(&PrintReport);
    return true;
  }();
  return wanted;
}

// Distinct values, few.
template <class T>
size_t CountDistinct(std::vector<T>& v) {
  std::sort(v.begin(), v.end());
  return static_cast<size_t>(std::unique(v.begin(), v.end()) - v.begin());
}

// 4 bytes a lane: the warp at once; 8: half a warp; 16: a quarter. Within one of these, different
// words of one bank come one after the other.
void CountWavefronts(const uintptr_t* address, uint32_t lanes, uint32_t bytes, Line* line) {
  const uint32_t group = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (uint32_t first = 0; first < 32; first += group) {
    std::vector<uintptr_t> words;
    for (uint32_t l = first; l < first + group; ++l) {
      if (!(lanes >> l & 1)) continue;
      for (uintptr_t w = address[l] / 4; w <= (address[l] + bytes - 1) / 4; ++w) words.push_back(w);
    }
    if (words.empty()) continue;
    words.resize(CountDistinct(words));
    int bank[32] = {};
    int most = 1;
    for (uintptr_t w : words) most = std::max(most, ++bank[w % 32]);
    line->units += most;
    line->ideal += static_cast<int64_t>((words.size() + 31) / 32);
  }
}

void CountSectors(const uintptr_t* address, uint32_t lanes, uint32_t bytes, Line* line) {
  std::vector<uintptr_t> sectors, chunks;
  for (uint32_t l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    for (uintptr_t s = address[l] / 32; s <= (address[l] + bytes - 1) / 32; ++s) {
      sectors.push_back(s);
    }
    chunks.push_back(address[l] / bytes);
  }
  line->units += static_cast<int64_t>(CountDistinct(sectors));
  line->ideal += static_cast<int64_t>((CountDistinct(chunks) * bytes + 31) / 32);
}

}  // namespace

void TrafficLog::BeginBlock(const char* kernel, size_t warps) {
  kernel_ = kernel;
  warps_.resize(warps);
}

void TrafficLog::Add(uint32_t warp, uint32_t lane, uint32_t place, const void* p, size_t bytes,
                     bool shared, bool write) {
  if (bytes == 0 || bytes > 16) return;
  PlaceLog& log = warps_[warp][uint64_t{place} << 2 | uint64_t{shared} << 1 | uint64_t{write}];
  log.shared = shared;
  log.write = write;
  const uint32_t n = log.next[lane]++;
  if (n >= log.requests.size()) log.requests.resize(n + 1);
  Request& r = log.requests[n];
  r.address[lane] = reinterpret_cast<uintptr_t>(p);
  r.lanes |= 1u << lane;
  r.bytes = static_cast<uint32_t>(bytes);
}

void TrafficLog::Flush(uint32_t warp) {
  if (warps_[warp].empty()) return;
  std::lock_guard lock(AllLines().mu);
  for (auto& [key, log] : warps_[warp]) {
    Line& line =
        AllLines().by_key[{kernel_, static_cast<uint32_t>(key >> 2), log.shared, log.write}];
    for (const Request& r : log.requests) {
      line.bytes = static_cast<int>(r.bytes);
      ++line.requests;
      if (log.shared) {
        CountWavefronts(r.address, r.lanes, r.bytes, &line);
      } else {
        CountSectors(r.address, r.lanes, r.bytes, &line);
      }
    }
  }
  warps_[warp].clear();
}

void TrafficLog::FlushAll() {
  for (uint32_t w = 0; w < warps_.size(); ++w) Flush(w);
}

namespace traffic {

std::vector<LineTraffic> Of(const std::string& kernel) {
  std::vector<LineTraffic> all;
  std::lock_guard lock(AllLines().mu);
  for (const auto& [key, line] : AllLines().by_key) {
    const auto& [name, place, shared, write] = key;
    if (!kernel.empty() && name != kernel) continue;
    all.push_back(
        {name, PlaceName(place), shared, write, line.bytes, line.requests, line.units, line.ideal});
  }
  return all;
}

void Reset() {
  std::lock_guard lock(AllLines().mu);
  AllLines().by_key.clear();
}

bool Wanted() { return WantedFlag().load(std::memory_order_relaxed); }
void Want(bool wanted) { WantedFlag() = wanted; }

}  // namespace traffic

}  // namespace lapidary::simt
