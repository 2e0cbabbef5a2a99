// What a step's description looks like in device memory.
#include "worker/cuda/cuda_batch.h"

#include <cuda_runtime_api.h>

#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kSliding = 0, kGlobal = 1;

template <class T>
std::vector<T> Read(const T* device, int64_t count) {
  std::vector<T> values(count);
  EXPECT_EQ(cudaMemcpy(values.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost),
            cudaSuccess);
  return values;
}

class CudaBatchTest : public testing::Test {
 protected:
  CudaBatchTest() {
    BatchUploader::Options options;
    options.limits.max_tokens = 64;
    options.limits.sampled_ids = 128;
    options.limits.pages = {50, 50};
    options.limits.windows = {20, 0};
    options.limits.used = {true, true};
    options.max_table_entries = 40;
    options.block_tokens = {4, 16};
    options.buckets = {1, 2, 4, 8};
    auto made = BatchUploader::Create(options);
    EXPECT_TRUE(made.ok()) << made.status();
    uploader_ = *std::move(made);
    stream_ = *CudaStream::Create();
  }
  // Tokens [start, start + len) of a sequence with these pages.
  void Add(int start, int len, const std::vector<int>& sliding, const std::vector<int>& global,
           bool last_only) {
    if (host_.seq_begin.empty()) host_.seq_begin.push_back(0);
    for (int i = 0; i < len; ++i) {
      if (!last_only || i + 1 == len) {
        host_.logits_index.push_back(static_cast<int32_t>(host_.token_ids.size()));
      }
      host_.token_ids.push_back(100 + start + i);
      host_.positions.push_back(start + i);
      host_.sampled_from.push_back(-1);
    }
    host_.seq_begin.push_back(static_cast<int32_t>(host_.token_ids.size()));
    host_.context_len.push_back(start + len);
    for (const auto& [f, pages] : {std::pair(kSliding, sliding), {kGlobal, global}}) {
      auto& table = tables_.emplace_back(std::make_unique<std::vector<PageId>>());
      for (const int page : pages) table->push_back(PageId{page});
      host_.page_tables[f].push_back(table.get());
    }
  }
  BatchUploader::Uploaded Upload() {
    auto uploaded = uploader_.Upload(host_, *stream_);
    EXPECT_TRUE(uploaded.ok()) << uploaded.status();
    EXPECT_TRUE(stream_->Synchronize().ok());
    return *std::move(uploaded);
  }

  BatchUploader uploader_;
  std::unique_ptr<CudaStream> stream_;
  HostBatch host_;
  std::vector<std::unique_ptr<std::vector<PageId>>> tables_;
};

TEST_F(CudaBatchTest, DecodeRowsArePaddedToTheirBucket) {
  Add(40, 1, {-1, 7, 8}, {1, 2, 3}, true);
  Add(3, 1, {9}, {4}, true);
  Add(16, 1, {5, 6}, {10, 11}, true);
  host_.sampled_from[1] = 33;
  const auto [whole, part] = Upload();
  EXPECT_EQ(part, nullptr);
  EXPECT_TRUE(whole->decode_only);
  EXPECT_EQ(whole->tokens, 4);
  EXPECT_EQ(whole->wanted, 4);
  EXPECT_EQ(whole->real_tokens, 3);
  EXPECT_THAT(Read(whole->known_ids, 4), ElementsAre(140, 103, 116, 0));
  EXPECT_THAT(Read(whole->sampled_from, 4), ElementsAre(-1, 33, -1, -1));
  EXPECT_THAT(Read(whole->positions, 4), ElementsAre(40, 3, 16, 0));
  EXPECT_THAT(Read(whole->wanted_tokens, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Read(whole->families[kSliding].page_of, 4), ElementsAre(8, 9, 6, -1));
  EXPECT_THAT(Read(whole->families[kGlobal].page_of, 4), ElementsAre(3, 4, 11, -1));
  ASSERT_EQ(whole->decode_runs, 4);
  EXPECT_EQ(whole->prefill_runs, 0);
  for (const int f : {kSliding, kGlobal}) {
    const auto runs = Read(whole->families[f].decode, 4);
    const auto table = Read(whole->families[f].page_table, 12);
    for (int b = 0; b < 3; ++b) {
      EXPECT_EQ(runs[b].token, b);
      EXPECT_EQ(runs[b].len, 1);
      EXPECT_EQ(runs[b].position, host_.positions[b]);
      EXPECT_EQ(table[runs[b].table + runs[b].position / kPageTokens],
                Read(whole->families[f].page_of, 4)[b]);
    }
    EXPECT_EQ(runs[3].len, 0);
  }
}

// A recorded step reads the same places whatever the contexts.
TEST_F(CudaBatchTest, PlacesDependOnTheBucketAlone) {
  Add(40, 1, {-1, 7, 8}, {1, 2, 3}, true);
  Add(3, 1, {9}, {4}, true);
  const auto first = Upload().whole;
  host_ = HostBatch();
  Add(0, 1, {9}, {4}, true);
  Add(100, 1, {0, 0, 0, 0, 0, 3, 1}, {1, 2, 3, 4, 5, 6, 7}, true);
  const auto second = Upload().whole;
  EXPECT_EQ(first->tokens, second->tokens);
  EXPECT_EQ(first->known_ids, second->known_ids);
  EXPECT_EQ(first->wanted_tokens, second->wanted_tokens);
  for (const int f : {kSliding, kGlobal}) {
    EXPECT_EQ(first->families[f].page_table, second->families[f].page_table);
    EXPECT_EQ(first->families[f].page_of, second->families[f].page_of);
    EXPECT_EQ(first->families[f].decode, second->families[f].decode);
  }
}

TEST_F(CudaBatchTest, PromptsAreCutIntoBlocksAndTheWantedOnesArePartedOff) {
  Add(10, 9, {1, 2}, {3, 4}, true);  // wanted: its last token
  Add(5, 1, {5}, {6}, true);
  const auto [whole, part] = Upload();
  EXPECT_FALSE(whole->decode_only);
  EXPECT_EQ(whole->tokens, 10);
  EXPECT_EQ(whole->wanted, 2);
  EXPECT_EQ(whole->decode_runs, 1);
  ASSERT_EQ(whole->prefill_runs, 1);
  const auto run = Read(whole->families[kGlobal].prefill, 1)[0];
  EXPECT_EQ(run.token, 0);
  EXPECT_EQ(run.len, 9);
  EXPECT_EQ(run.position, 10);
  for (const auto& [tokens, blocks] : {std::pair(4, 3), {16, 1}}) {
    const CudaBatch::Blocks& cut = whole->BlocksOf(tokens);
    EXPECT_EQ(cut.tokens, tokens);
    ASSERT_EQ(cut.count, blocks);
    int covered = 0;
    for (const PrefillBlock& block : Read(cut.blocks, blocks)) covered += block.count;
    EXPECT_EQ(covered, 9);
  }
  ASSERT_NE(part, nullptr);
  EXPECT_TRUE(part->is_part);
  EXPECT_EQ(part->tokens, 2);
  EXPECT_EQ(part->decode_runs, 2);
  EXPECT_EQ(part->prefill_runs, 0);
  EXPECT_THAT(Read(part->positions, 2), ElementsAre(18, 5));
  const auto runs = Read(part->families[kGlobal].decode, 2);
  EXPECT_EQ(runs[0].token, 0);
  EXPECT_EQ(runs[0].position, 18);
  EXPECT_EQ(runs[1].token, 1);
  EXPECT_EQ(Read(part->families[kGlobal].page_table, 8)[runs[1].table], 6);
}

TEST_F(CudaBatchTest, NeighboursThatAreWantedStayARun) {
  Add(2, 6, {1}, {2}, false);
  host_.logits_index = {1, 2, 3, 5};
  const auto part = Upload().part;
  ASSERT_NE(part, nullptr);
  ASSERT_EQ(part->prefill_runs, 1);
  ASSERT_EQ(part->decode_runs, 1);
  const auto run = Read(part->families[kSliding].prefill, 1)[0];
  EXPECT_EQ(run.token, 0);
  EXPECT_EQ(run.len, 3);
  EXPECT_EQ(run.position, 3);
  EXPECT_EQ(Read(part->families[kSliding].decode, 1)[0].token, 3);
}

TEST_F(CudaBatchTest, APageThatDoesNotExistIsRefused) {
  Add(3, 1, {50}, {4}, true);
  const auto uploaded = uploader_.Upload(host_, *stream_);
  EXPECT_EQ(uploaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(uploaded.status().message(), HasSubstr("page 50 of 50"));
}

TEST_F(CudaBatchTest, ThreeBatchesOnTheirWayKeepTheirOwnNumbers) {
  std::vector<PinnedBuffer> results;
  for (int step = 0; step < 6; ++step) {
    host_ = HostBatch();
    Add(step, 1, {9}, {4}, true);
    auto uploaded = uploader_.Upload(host_, *stream_);
    ASSERT_TRUE(uploaded.ok());
    // In stream order each copy is whole before the next begins.
    auto pinned = PinnedBuffer::Allocate(4, "test");
    ASSERT_TRUE(pinned.ok());
    stream_->Check("read", cudaMemcpyAsync(pinned->data(), uploaded->whole->known_ids, 4,
                                           cudaMemcpyDeviceToHost, stream_->raw()));
    results.push_back(*std::move(pinned));
  }
  ASSERT_TRUE(stream_->Synchronize().ok());
  for (int step = 0; step < 6; ++step) EXPECT_EQ(*results[step].data<int32_t>(), 100 + step);
}

}  // namespace
}  // namespace lapidary
