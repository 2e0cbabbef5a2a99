#include "kernels/simt/report.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "kernels/simt/monitor.h"
#include "kernels/simt/thread.h"

namespace lapidary::simt {
namespace {

struct Counts {
  std::mutex mu;
  std::map<std::string, KernelCounts> by_kernel;
};
Counts& AllCounts();

void WriteReport() {
  const char* wanted = getenv("SIMT_REPORT");
  if (wanted == nullptr) return;
  std::string path = wanted;
  if (const size_t at = path.find("%p"); at != std::string::npos) {
    path.replace(at, 2, std::to_string(getpid()));
  }
  FILE* f = fopen(path.c_str(), "w");
  if (!f) return;
  fprintf(f, "[");
  const char* separator = "\n";
  for (const KernelCounts& c : LaunchCounts()) {
    fprintf(f,
            "%s {\"kernel\": \"%s\", \"launches\": %ld, \"blocks\": %ld, \"threads\": %ld, "
            "\"bytes_read\": %ld, \"bytes_written\": %ld}",
            separator, c.kernel.c_str(), static_cast<long>(c.launches), static_cast<long>(c.blocks),
            static_cast<long>(c.threads), static_cast<long>(c.bytes_read),
            static_cast<long>(c.bytes_written));
    separator = ",\n";
  }
  fprintf(f, "\n]\n");
  fclose(f);
}

Counts& AllCounts() {
  static Counts* counts = [] {
    if (getenv("SIMT_REPORT")) atexit(&WriteReport);
    return new Counts;
  }();
  return *counts;
}

}  // namespace

std::vector<KernelCounts> LaunchCounts() {
  Counts& all = AllCounts();
  std::lock_guard lock(all.mu);
  std::vector<KernelCounts> counts;
  for (const auto& [name, c] : all.by_kernel) counts.push_back(c);
  return counts;
}

KernelCounts CountsOf(const std::string& kernel) {
  for (const KernelCounts& c : LaunchCounts()) {
    if (c.kernel == kernel) return c;
  }
  KernelCounts none;
  none.kernel = kernel;
  return none;
}

void ResetLaunchCounts() {
  std::lock_guard lock(AllCounts().mu);
  AllCounts().by_kernel.clear();
}

void WantTraffic(bool wanted) {
  if (monitor) monitor->WantTraffic(wanted);
}
std::vector<LineTraffic> Traffic(const std::string& kernel) {
  return monitor ? monitor->Traffic(kernel) : std::vector<LineTraffic>{};
}
void ResetTraffic() {
  if (monitor) monitor->ResetTraffic();
}
int64_t BankConflicts(const std::string& kernel) {
  int64_t conflicts = 0;
  for (const LineTraffic& t : Traffic(kernel)) {
    if (t.shared) conflicts += t.units - t.ideal;
  }
  return conflicts;
}
bool Checked() { return monitor != nullptr; }

void CountLaunch(const Block& block, uint64_t blocks) {
  Counts& all = AllCounts();
  std::lock_guard lock(all.mu);
  KernelCounts& c = all.by_kernel[block.kernel];
  c.kernel = block.kernel;
  ++c.launches;
  c.blocks += static_cast<int64_t>(blocks);
  c.threads += static_cast<int64_t>(blocks * block.size.x * block.size.y * block.size.z);
  c.bytes_read += block.bytes_read;
  c.bytes_written += block.bytes_written;
}

}  // namespace lapidary::simt
