#include "cli/cpu_affinity.h"

#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>

namespace lapidary {

std::vector<int> AvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

int CountNumaNodes(const std::vector<int>& cpus) {
  std::set<std::string> nodes;
  for (const int cpu : cpus) {
    std::error_code error;
    const std::filesystem::path folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
    for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
         it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (name.size() > 4 && name.compare(0, 4, "node") == 0) nodes.insert(name);
    }
  }
  return std::max<int>(1, static_cast<int>(nodes.size()));
}

std::vector<int> CpusOfRank(const std::vector<int>& cpus, int ranks, int rank) {
  const int n = static_cast<int>(cpus.size());
  if (n < ranks) return {};
  return {cpus.begin() + n * rank / ranks, cpus.begin() + n * (rank + 1) / ranks};
}

}  // namespace lapidary
