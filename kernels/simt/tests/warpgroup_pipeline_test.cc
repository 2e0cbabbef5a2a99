// A warp that fetches tiles by bulk copies and a warpgroup that multiplies them, as Hopper's
// kernels are built: silent when it is right, in every order, and reported when one thing is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/simt/tests/planted.h"

namespace lapidary::simt {
namespace {

constexpr int kStages = 2, kTile = 64 * 128;  // bytes

struct Pipeline {
  const unsigned char *a, *b;  // [tiles][kTile], zeros and ones in bf16
  float* out;                  // [128][32]
  int tiles = 5;
  int consumers = 4;        // arrivals that free a stage: one a warp
  int arriving_lane = 31;   // any will do: the wait is the whole warp's
  bool free_early = false;  // before the products have been waited for
  bool ahead = true;        // one group of products stays under way
  bool wait_full = true;
};
__global__ void Multiply(const __grid_constant__ Pipeline p) {
  GPU_DYN_SMEM(unsigned char, tiles);
  GPU_SHARED(full, gpu::Mbarrier[kStages]);
  GPU_SHARED(empty, gpu::Mbarrier[kStages]);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      gpu::MbarrierInit(&full[i], 1);
      gpu::MbarrierInit(&empty[i], p.consumers);
    }
    gpu::FenceMbarrierInit();
  }
  __syncthreads();
  if (thread >= 128) {  // the last warp fetches
    for (int i = 0; i < p.tiles && thread == 128; ++i) {
      unsigned char* stage = tiles + i % kStages * 2 * kTile;
      gpu::MbarrierWait(&empty[i % kStages], (i / kStages & 1) ^ 1);
      gpu::MbarrierArriveExpect(&full[i % kStages], 2 * kTile);
      gpu::BulkCopyToShared(stage, p.a + i * kTile, kTile, &full[i % kStages]);
      gpu::BulkCopyToShared(stage + kTile, p.b + i * kTile, kTile, &full[i % kStages]);
    }
    return;
  }
  float d[32] = {};
  auto free_stage = [&](int i) {
    const bool arrives = thread % 32 == p.arriving_lane && thread / 32 < p.consumers;
    if (arrives) gpu::MbarrierArrive(&empty[i % kStages]);
  };
  for (int i = 0; i < p.tiles; ++i) {
    const unsigned char* stage = tiles + i % kStages * 2 * kTile;
    if (p.wait_full) gpu::MbarrierWait(&full[i % kStages], i / kStages & 1);
    gpu::WgmmaFence();
    for (int k = 0; k < 128; k += 32) {
      gpu::WgmmaM64N64K16(d, gpu::WgmmaDescriptor(stage + k),
                          gpu::WgmmaDescriptor(stage + kTile + k));
    }
    gpu::WgmmaCommit();
    if (p.free_early) free_stage(i);
    if (p.ahead) {
      gpu::WgmmaWait<1>();
      if (i > 0 && !p.free_early) free_stage(i - 1);
    } else {
      gpu::WgmmaWait<0>();
      if (!p.free_early) free_stage(i);
    }
  }
  gpu::WgmmaWait<0>();
  for (int i = 0; i < 32; ++i) p.out[thread * 32 + i] = d[i];
}

class WarpgroupPipelineTest : public testing::Test {
 protected:
  WarpgroupPipelineTest() : a_(5 * kTile / 2), b_(5 * kTile / 2), out_(128 * 32) {
    a_.Fill(0x3f80);  // one
    b_.Fill(0x3f80);
    p_ = {.a = reinterpret_cast<unsigned char*>(a_.data()),
          .b = reinterpret_cast<unsigned char*>(b_.data()),
          .out = out_.data()};
  }
  void IsFound(const char* message) {
    InEveryOrder([&](const std::string& order) {
      EXPECT_THAT(Failures(shape_, Multiply, p_), testing::Contains(testing::HasSubstr(message)))
          << order;
    });
  }
  Buffer<uint16_t> a_, b_;
  Buffer<float> out_;
  Pipeline p_;
  const Shape shape_{1, 160, kStages * 2 * kTile};
};

TEST_F(WarpgroupPipelineTest, IsSilentWhenRight) {
  for (const bool ahead : {true, false}) {
    for (const int lane : {0, 7, 31}) {
      p_.ahead = ahead;
      p_.arriving_lane = lane;
      InEveryOrder([&](const std::string& order) {
        EXPECT_THAT(Failures(shape_, Multiply, p_), testing::IsEmpty()) << order;
        EXPECT_EQ(out_[77], 5 * 64) << order;
      });
    }
  }
}
TEST_F(WarpgroupPipelineTest, AStageIsFreedBeforeItsProductsAreDone) {
  ONLY_CHECKED();
  p_.free_early = true;
  IsFound("operand of a wgmma that is under way");
}
TEST_F(WarpgroupPipelineTest, OneWarpDoesNotTakePartInFreeing) {
  ONLY_CHECKED();
  p_.consumers = 3;
  InEveryOrder([&](const std::string& order) {
    // Found as a write under way or, when the fourth warp happens to be done, by clocks.
    EXPECT_THAT(Failures(shape_, Multiply, p_), testing::Contains(testing::HasSubstr("wgmma")))
        << order;
  });
}
TEST_F(WarpgroupPipelineTest, NobodyWaitsForTheTile) {
  ONLY_CHECKED();
  p_.wait_full = false;
  InEveryOrder([&](const std::string& order) {
    EXPECT_FALSE(Failures(shape_, Multiply, p_).empty()) << order;
  });
}

}  // namespace
}  // namespace lapidary::simt
