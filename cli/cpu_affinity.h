// Which CPUs the ranks of this machine get.
#pragma once
#include <vector>

namespace lapidary {

// The logical CPUs in this process's affinity mask, ascending.
std::vector<int> AvailableCpus();
// NUMA nodes that hold at least one of `cpus`; 1 when the system does not say.
int CountNumaNodes(const std::vector<int>& cpus);
// Rank `rank` of `ranks`: a contiguous share of `cpus`. Empty when there are fewer CPUs than ranks
// (then nobody is pinned).
std::vector<int> CpusOfRank(const std::vector<int>& cpus, int ranks, int rank);

}  // namespace lapidary
