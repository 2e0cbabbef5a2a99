// One kernel per class of mistake with asynchronous copies, mbarriers and warpgroup products.
#include <gtest/gtest.h>

#include "kernels/simt/tests/planted.h"

namespace lapidary::simt {
namespace {

using testing::Contains;
using testing::HasSubstr;

// -- Asynchronous copies.

__global__ void ReadsBeforeTheWait(const float4* in, float4* out) {
  GPU_DYN_SMEM(float4, s);
  gpu::CpAsync16(&s[threadIdx.x], &in[threadIdx.x]);
  gpu::CpAsyncCommit();
  out[threadIdx.x] = gpu::Load<float4>(&s[threadIdx.x]);
  gpu::CpAsyncWait<0>();
}
TEST(PlantedAsync, CopyIsReadBeforeTheWait) {
  ONLY_CHECKED();
  Buffer<float4> in(32), out(32);
  in.Fill({});
  Finds("asynchronous copy still writes", {1, 32, 512}, ReadsBeforeTheWait, in.data(), out.data());
}
__global__ void CopyWaitIsTooLax(const float4* in, float4* out) {
  GPU_DYN_SMEM(float4, s);
  for (int i = 0; i < 2; ++i) {
    gpu::CpAsync16(&s[i * 32 + threadIdx.x], &in[threadIdx.x]);
    gpu::CpAsyncCommit();
  }
  gpu::CpAsyncWait<2>();
  out[threadIdx.x] = gpu::Load<float4>(&s[threadIdx.x]);
  gpu::CpAsyncWait<0>();
}
TEST(PlantedAsync, CopyWaitLeavesTooMuchPending) {
  ONLY_CHECKED();
  Buffer<float4> in(32), out(32);
  in.Fill({});
  Finds("asynchronous copy still writes", {1, 32, 1024}, CopyWaitIsTooLax, in.data(), out.data());
}
TEST(PlantedAsync, LazyCopyShowsNaNBeforeTheWait) {
  Buffer<float4> in(32), out(32);
  in.Fill({1, 1, 1, 1});
  const Policy before = CurrentPolicy();
  CurrentPolicy().lazy = true;
  Failures({1, 32, 1024}, CopyWaitIsTooLax, in.data(), out.data());
  CurrentPolicy() = before;
  EXPECT_TRUE(std::isnan(out[0].x));
}
__global__ void CopyOfOthersWithoutBarrier(const float4* in, float4* out) {
  GPU_DYN_SMEM(float4, s);
  gpu::CpAsync16(&s[threadIdx.x], &in[threadIdx.x]);
  gpu::CpAsyncCommit();
  gpu::CpAsyncWait<0>();
  out[threadIdx.x] = gpu::Load<float4>(&s[threadIdx.x ^ 1]);
}
TEST(PlantedAsync, CopiesOfOthersNeedABarrier) {
  ONLY_CHECKED();
  Buffer<float4> in(32), out(32);
  in.Fill({});
  InEveryOrder([&](const std::string& order) {
    EXPECT_FALSE(Failures({1, 32, 512}, CopyOfOthersWithoutBarrier, in.data(), out.data()).empty())
        << order;
  });
}
__global__ void CopyOverwritesAStageInUse(const float4* in, float4* out) {
  GPU_DYN_SMEM(float4, s);
  for (int i = 0; i < 2; ++i) {
    gpu::CpAsync16(&s[threadIdx.x], &in[threadIdx.x]);
    gpu::CpAsyncCommit();
    gpu::CpAsyncWait<0>();
    __syncthreads();
    out[threadIdx.x] = gpu::Load<float4>(&s[threadIdx.x ^ 32]);
    // __syncthreads() is missing: the next copy may overtake other threads' reads.
  }
}
TEST(PlantedAsync, CopyOverwritesWhatOthersStillRead) {
  ONLY_CHECKED();
  Buffer<float4> in(64), out(64);
  in.Fill({});
  Finds("race: write while another thread may still read", {1, 64, 1024}, CopyOverwritesAStageInUse,
        in.data(), out.data());
}
__global__ void MisalignedCopy(const float* in) {
  GPU_DYN_SMEM(float4, s);
  gpu::CpAsync16(&s[0], in + 1);
  gpu::CpAsyncCommit();
  gpu::CpAsyncWait<0>();
}
TEST(PlantedAsync, CopyIsMisaligned) {
  Buffer<float> in(8);
  in.Fill(0);
  Finds("cp.async: source", {1, 1, 16}, MisalignedCopy, in.data());
}
__global__ void CopyBeyondShared(const float4* in) {
  GPU_DYN_SMEM(float4, s);
  gpu::CpAsync16(&s[1], in);
}
TEST(PlantedAsync, CopyGoesBeyondSharedMemory) {
  Buffer<float4> in(1);
  in.Fill({});
  Finds("cp.async: the target is not", {1, 1, 16}, CopyBeyondShared, in.data());
}
__global__ void MisalignedLdmatrix() {
  GPU_DYN_SMEM(unsigned char, s);
  for (int i = 0; i < 16; ++i) s[threadIdx.x * 16 + i] = 0;
  __syncwarp();
  uint32_t r[4];
  gpu::Ldmatrix4(r, s + (threadIdx.x == 9 ? 8 : 0));
}
TEST(PlantedAsync, LdmatrixRowIsMisaligned) {
  Finds("ldmatrix: row", {1, 32, 512}, MisalignedLdmatrix);
}
__global__ void LdmatrixWithoutSync(uint32_t* out) {
  GPU_DYN_SMEM(uint4, s);
  s[threadIdx.x] = uint4{1, 2, 3, 4};
  uint32_t r[4];
  gpu::Ldmatrix4(r, &s[threadIdx.x ^ 1]);
  out[threadIdx.x] = r[0];
}
TEST(PlantedAsync, LdmatrixWithoutSyncwarp) {
  ONLY_CHECKED();
  Buffer<uint32_t> out(32);
  InEveryOrder([&](const std::string& order) {
    EXPECT_FALSE(Failures({1, 32, 512}, LdmatrixWithoutSync, out.data()).empty()) << order;
  });
}

// -- mbarriers and bulk copies.

__global__ void UninitialisedMbarrier() {
  GPU_SHARED(bar, gpu::Mbarrier);
  gpu::MbarrierWait(&bar, 0);
}
TEST(PlantedAsync, MbarrierWasNeverInitialised) {
  Finds("never initialised", {1, 32}, UninitialisedMbarrier);
}

// One stage of `bytes`, one producer thread, everybody reads. `expect` and `copied` may differ.
struct Stage {
  const float4* in;
  float4* out;
  uint32_t expect, copied;
  bool fence_init = true, fence_mbarrier = true, wait = true, reuse_early = false;
  bool clear = false, fence_clear = true;
};
__global__ void OneStage(const __grid_constant__ Stage p) {
  GPU_DYN_SMEM(float4, s);
  GPU_SHARED(bar, gpu::Mbarrier);
  if (p.clear) gpu::Store(&s[threadIdx.x], float4{});
  if (p.fence_clear) gpu::FenceProxyAsync();
  if (threadIdx.x == 0) {
    gpu::MbarrierInit(&bar, 1);
    if (p.fence_mbarrier) gpu::FenceMbarrierInit();
  }
  if (p.fence_init) __syncthreads();
  if (threadIdx.x == 0) {
    gpu::MbarrierArriveExpect(&bar, p.expect);
    gpu::BulkCopyToShared(s, p.in, p.copied, &bar);
  }
  if (p.wait) gpu::MbarrierWait(&bar, 0);
  p.out[threadIdx.x] = gpu::Load<float4>(&s[threadIdx.x]);
  if (p.reuse_early && threadIdx.x == 0) {
    gpu::MbarrierArriveExpect(&bar, p.expect);
    gpu::BulkCopyToShared(s, p.in, p.copied, &bar);
    gpu::MbarrierWait(&bar, 1);
  }
}
class PlantedBulkCopy : public testing::Test {
 protected:
  PlantedBulkCopy() : in_(64), out_(64) {
    in_.Fill({1, 2, 3, 4});
    stage_ = {.in = in_.data(), .out = out_.data(), .expect = 1024, .copied = 1024};
  }
  Buffer<float4> in_, out_;
  Stage stage_;
  const Shape shape_{1, 64, 1024};
};
TEST_F(PlantedBulkCopy, NothingIsWrongWithoutAMistake) {
  InEveryOrder([&](const std::string& order) {
    EXPECT_THAT(Failures(shape_, OneStage, stage_), testing::IsEmpty()) << order;
    EXPECT_EQ(out_[63].w, 4) << order;
    Stage cleared = stage_;
    cleared.clear = true;
    EXPECT_THAT(Failures(shape_, OneStage, cleared), testing::IsEmpty()) << order;
  });
}
TEST_F(PlantedBulkCopy, FenceProxyAsyncBeforeItIsMissing) {
  ONLY_CHECKED();
  stage_.clear = true;
  stage_.fence_clear = false;
  Finds("FenceProxyAsync is missing", shape_, OneStage, stage_);
}
TEST_F(PlantedBulkCopy, FewerBytesThanExpected) {
  stage_.copied = 512;
  Finds("512 of 1024 bytes", shape_, OneStage, stage_);
}
TEST_F(PlantedBulkCopy, MoreBytesThanExpected) {
  stage_.expect = 512;
  Finds("copies of 1024 bytes where 512 were expected", shape_, OneStage, stage_);
}
TEST_F(PlantedBulkCopy, BytesAreNoMultipleOf16) {
  stage_.copied = stage_.expect = 1000;
  Finds("not multiples of 16", shape_, OneStage, stage_);
}
TEST_F(PlantedBulkCopy, NobodyWaits) {
  stage_.wait = false;
  const Policy before = CurrentPolicy();
  CurrentPolicy().lazy = true;
  EXPECT_THAT(Failures(shape_, OneStage, stage_), Contains(HasSubstr("nobody has waited")));
  CurrentPolicy() = before;
}
TEST_F(PlantedBulkCopy, ReadWithoutWaiting) {
  ONLY_CHECKED();
  stage_.wait = false;
  InEveryOrder([&](const std::string& order) {
    EXPECT_THAT(Failures(shape_, OneStage, stage_), Contains(HasSubstr("race: "))) << order;
  });
}
TEST_F(PlantedBulkCopy, FenceMbarrierInitIsMissing) {
  stage_.fence_mbarrier = false;
  Finds("FenceMbarrierInit is missing", shape_, OneStage, stage_);
}
TEST_F(PlantedBulkCopy, BarrierAfterTheInitIsMissing) {
  ONLY_CHECKED();
  stage_.fence_init = false;
  InEveryOrder([&](const std::string& order) {
    // A wait before the init, or a race with it.
    EXPECT_FALSE(Failures(shape_, OneStage, stage_).empty()) << order;
  });
}
TEST_F(PlantedBulkCopy, StageIsFilledWhileOthersRead) {
  ONLY_CHECKED();
  stage_.reuse_early = true;
  InEveryOrder([&](const std::string& order) {
    EXPECT_FALSE(Failures(shape_, OneStage, stage_).empty()) << order;
  });
}

__global__ void ArrivesTooOften() {
  GPU_SHARED(bar, gpu::Mbarrier);
  if (threadIdx.x == 0) gpu::MbarrierInit(&bar, 2);
  __syncthreads();
  gpu::MbarrierArrive(&bar);  // 3 arrivals: a phase and a half
  gpu::MbarrierWait(&bar, 0);
  if (threadIdx.x == 0) gpu::MbarrierWait(&bar, 1);
}
TEST(PlantedAsync, PhaseThatNeverEnds) { Finds("mbarrier at", {1, 3}, ArrivesTooOften); }

__global__ void PhaseOverrun(int* out) {
  GPU_SHARED(bar, gpu::Mbarrier);
  if (threadIdx.x == 0) gpu::MbarrierInit(&bar, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) gpu::MbarrierArrive(&bar);
  } else {
    gpu::MbarrierWait(&bar, 0);  // may find phase 2 under way and wait for ever
  }
  out[threadIdx.x] = 1;
}
TEST(PlantedAsync, PhaseOverrun) {
  Buffer<int> out(2);
  const Policy before = CurrentPolicy();
  CurrentPolicy().order = Order::kReverse;  // late for the phase
  EXPECT_THAT(Failures({1, 2}, PhaseOverrun, out.data()), Contains(HasSubstr("deadlock")));
  CurrentPolicy().order = Order::kForward;  // waits for it, and is overtaken
  EXPECT_THAT(Failures({1, 2}, PhaseOverrun, out.data()),
              Contains(HasSubstr("has not yet seen the end of phase 0")));
  CurrentPolicy() = before;
}

__global__ void WritesOverMbarrier() {
  GPU_SHARED(bar, gpu::Mbarrier);
  gpu::MbarrierInit(&bar, 1);
  reinterpret_cast<volatile uint32_t*>(&bar)[0] = 1;
  gpu::MbarrierArrive(&bar);
}
TEST(PlantedAsync, SomethingWritesOverAnMbarrier) {
  Finds("wrote over the mbarrier", {1, 1}, WritesOverMbarrier);
}

__global__ void ConsumerDoesNotRelease(const float4* in, float4* out) {
  GPU_DYN_SMEM(float4, s);
  GPU_SHARED(full, gpu::Mbarrier);
  if (threadIdx.x == 0) {
    gpu::MbarrierInit(&full, 1);
    gpu::FenceMbarrierInit();
  }
  __syncthreads();
  for (uint32_t i = 0; i < 2; ++i) {
    if (threadIdx.x == 0) {  // should wait until the 31 others have read
      gpu::MbarrierArriveExpect(&full, 512);
      gpu::BulkCopyToShared(s, in, 512, &full);
    }
    gpu::MbarrierWait(&full, i & 1);
    out[threadIdx.x] = gpu::Load<float4>(&s[threadIdx.x]);
  }
}
TEST(PlantedAsync, ProducerDoesNotWaitForConsumers) {
  ONLY_CHECKED();
  Buffer<float4> in(32), out(32);
  in.Fill({});
  InEveryOrder([&](const std::string& order) {
    EXPECT_FALSE(Failures({1, 32, 512}, ConsumerDoesNotRelease, in.data(), out.data()).empty())
        << order;
  });
}

// -- Warpgroup products.

struct Product {
  float* out;
  bool register_fence = true, proxy_fence = true, commit = true, wait = true, barrier = true;
  bool overwrite = false, touch = false;
};
__global__ void OneProduct(const __grid_constant__ Product p) {
  GPU_DYN_SMEM(unsigned char, s);  // two tiles of 64 x 128 bytes
  for (int i = 0; i < 8; ++i) {
    gpu::Store<uint4>(s + (i * 128 + threadIdx.x) * 16, uint4{0, 0, 0, 0});
  }
  if (p.proxy_fence) gpu::FenceProxyAsync();
  if (p.barrier) __syncthreads();
  float d[32];
  for (float& x : d) x = 1;
  const uint64_t a = gpu::WgmmaDescriptor(s), b = gpu::WgmmaDescriptor(s + 8192);
  if (p.register_fence) gpu::WgmmaFence();
  gpu::WgmmaM64N64K16(d, a, b);
  if (p.touch) d[3] = 2;
  if (p.commit) gpu::WgmmaCommit();
  if (p.overwrite) {
    __syncthreads();
    gpu::Store<uint4>(s + threadIdx.x * 16, uint4{0, 0, 0, 0});
  }
  if (p.wait) gpu::WgmmaWait<0>();
  for (int i = 0; i < 32; ++i) p.out[threadIdx.x * 32 + i] = d[i];
}
class PlantedProduct : public testing::Test {
 protected:
  PlantedProduct() : out_(128 * 32) { product_.out = out_.data(); }
  Buffer<float> out_;
  Product product_;
  const Shape shape_{1, 128, 16384};
};
TEST_F(PlantedProduct, NothingIsWrongWithoutAMistake) {
  InEveryOrder([&](const std::string& order) {
    EXPECT_THAT(Failures(shape_, OneProduct, product_), testing::IsEmpty()) << order;
    EXPECT_EQ(out_[4095], 1) << order;
  });
}
TEST_F(PlantedProduct, WgmmaFenceIsMissing) {
  product_.register_fence = false;
  Finds("WgmmaFence is missing", shape_, OneProduct, product_);
}
TEST_F(PlantedProduct, FenceProxyAsyncIsMissing) {
  ONLY_CHECKED();
  product_.proxy_fence = false;
  Finds("FenceProxyAsync is missing", shape_, OneProduct, product_);
}
TEST_F(PlantedProduct, BarrierBeforeTheProductIsMissing) {
  ONLY_CHECKED();
  product_.barrier = false;
  Finds("race: ", shape_, OneProduct, product_);
}
TEST_F(PlantedProduct, CommitIsMissing) {
  product_.commit = false;
  Finds("has not waited for its products", shape_, OneProduct, product_);
}
TEST_F(PlantedProduct, WaitIsMissing) {
  product_.wait = false;
  Finds("has not waited for its products", shape_, OneProduct, product_);
}
TEST_F(PlantedProduct, OperandIsOverwrittenBeforeTheWait) {
  ONLY_CHECKED();
  product_.overwrite = true;
  Finds("operand of a wgmma that is under way", shape_, OneProduct, product_);
}
TEST_F(PlantedProduct, AccumulatorIsTouchedBeforeTheWait) {
  product_.touch = true;
  const Policy before = CurrentPolicy();
  CurrentPolicy().lazy = true;
  EXPECT_THAT(Failures(shape_, OneProduct, product_),
              Contains(HasSubstr("accumulators were written")));
  CurrentPolicy() = before;
}
TEST_F(PlantedProduct, NotAWholeWarpgroup) {
  Finds("not in a whole warpgroup", {1, 96, 16384}, OneProduct, product_);
}

}  // namespace
}  // namespace lapidary::simt
