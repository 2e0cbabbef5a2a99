#include "cli/cpu_affinity.h"

#include <gtest/gtest.h>

namespace lapidary {
namespace {

TEST(CpusOfRank, SharesEveryCpuOnce) {
  const std::vector<int> cpus = {0, 2, 3, 5, 8, 9, 11};
  for (int ranks = 1; ranks <= 7; ++ranks) {
    std::vector<int> all;
    for (int rank = 0; rank < ranks; ++rank) {
      const std::vector<int> mine = CpusOfRank(cpus, ranks, rank);
      EXPECT_FALSE(mine.empty()) << ranks << " ranks, rank " << rank;
      all.insert(all.end(), mine.begin(), mine.end());
    }
    EXPECT_EQ(all, cpus) << ranks << " ranks";
  }
}

TEST(CpusOfRank, PinsNobodyWithMoreRanksThanCpus) {
  EXPECT_TRUE(CpusOfRank({0, 1}, 4, 0).empty());
  EXPECT_TRUE(CpusOfRank({0, 1}, 4, 3).empty());
}

TEST(AvailableCpus, HasAtLeastOne) {
  const std::vector<int> cpus = AvailableCpus();
  ASSERT_FALSE(cpus.empty());
  EXPECT_GE(CountNumaNodes(cpus), 1);
}

}  // namespace
}  // namespace lapidary
