// What planning says a rank will hold is what the CPU backend's loader makes resident, to the byte.
#include "model/weight_bytes.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "tests/model/checkpoint_files.h"
#include "worker/cpu_backend_matrix.h"
#include "worker/weights.h"

namespace lapidary {
namespace {

void ExpectTheLoadersBytes(const Checkpoint& checkpoint) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    const auto plan = PlanShards(checkpoint.spec(), ranks);
    if (!plan.ok()) continue;  // too few query heads
    for (const RankShard& rank : plan->ranks) {
      for (const ComputeType compute :
           {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8}) {
        const auto loader = CpuWeightsBytes(checkpoint, rank, compute);
        ASSERT_TRUE(loader.ok()) << loader.status();
        EXPECT_EQ(PackedWeightBytes(checkpoint.spec(), rank, &checkpoint, compute), *loader)
            << checkpoint.path() << " rank " << rank.rank.value << " of " << ranks << ", compute "
            << static_cast<int>(compute);
      }
    }
  }
}

TEST(WeightBytes, OfTheGoldenModels) {
  int models = 0;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden/models")) {
    if (!entry.is_directory()) continue;
    const auto checkpoint = Checkpoint::Open(entry.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ExpectTheLoadersBytes(**checkpoint);
    ++models;
  }
  EXPECT_GE(models, 10);
}

TEST(WeightBytes, OfQuantisedFiles) {
  const TempFolder folder;
  for (const std::string& file : {TinyGemma3Gguf(), TinyGemma4Gguf(false), TinyGemma4Gguf(true)}) {
    const auto checkpoint = Checkpoint::Open(folder.Write("model.gguf", file));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ExpectTheLoadersBytes(**checkpoint);
  }
}

}  // namespace
}  // namespace lapidary
