// Runs the GPU's sampler on ranks that are threads with a GPU each, beside the CPU's.
#pragma once
#include <functional>
#include <thread>

#include "kernels/device_test_support.h"
#include "kernels/test_devices.h"
#include "tests/worker/sampler_harness.h"
#include "worker/cuda/cuda_sampler.h"

namespace lapidary {

// This rank's columns of the logits, in device memory; `padding` columns of NaN behind each row.
class DeviceShard {
 public:
  DeviceShard(const Matrix& logits, Range vocab, int64_t padding) {
    view_.vocab = vocab;
    view_.rows = std::ssize(logits);
    view_.stride = vocab.size() + padding;
    std::vector<float> shard(std::max<int64_t>(1, view_.rows * view_.stride), kNan);
    for (int64_t row = 0; row < view_.rows; ++row) {
      std::copy(logits[row].begin() + vocab.begin, logits[row].begin() + vocab.end,
                shard.begin() + row * view_.stride);
    }
    memory_ = std::make_unique<DeviceArray<float>>(shard);
    view_.data = memory_->data();
  }
  const LogitsView& view() const { return view_; }

 private:
  LogitsView view_;
  std::unique_ptr<DeviceArray<float>> memory_;
};

// As SampleWith of sampler_harness.h splits it.
inline Range ShardOf(int64_t vocab, Layout layout, int rank) {
  const int64_t units = (vocab + layout.unit - 1) / layout.unit;
  Range range;
  range.begin = std::min(vocab, units * rank / layout.ranks * layout.unit);
  range.end = std::min(vocab, units * (rank + 1) / layout.ranks * layout.unit);
  return range;
}

// Calls work(rank, ranks, stream) on a thread for each rank, which has a GPU of its own; ranks is
// null for one.
inline void ForRanks(int size,
                     const std::function<void(int, NcclCommunicator*, CudaStream&)>& work) {
  const auto id = NewNcclId();
  ASSERT_TRUE(id.ok()) << id.status();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ASSERT_EQ(cudaSetDevice(rank), cudaSuccess);
      const auto stream = CudaStream::Create();
      ASSERT_TRUE(stream.ok()) << stream.status();
      if (size == 1) return work(0, nullptr, **stream);
      const auto ranks = NcclCommunicator::Create(
          {.id = *id, .rank = RankId{rank}, .size = size, .ended = {}, .on_lost = {}});
      ASSERT_TRUE(ranks.ok()) << ranks.status();
      work(rank, ranks->get(), **stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline void ExpectSameBits(const SampledRow& a, const SampledRow& b) {
  EXPECT_EQ(a.sampled.id, b.sampled.id);
  EXPECT_EQ(Bits(a.sampled.logprob), Bits(b.sampled.logprob));
  EXPECT_EQ(a.scored.id, b.scored.id);
  EXPECT_EQ(Bits(a.scored.logprob), Bits(b.scored.logprob));
  for (const auto& [x, y] :
       {std::pair{a.sampled.top, b.sampled.top}, {a.scored.top, b.scored.top}}) {
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(x[i].id, y[i].id);
      EXPECT_EQ(Bits(x[i].logprob), Bits(y[i].logprob));
    }
  }
}

// What every rank answers; they must agree in every bit. `padding`: a multiple of 4 keeps rows
// aligned if the shards are.
inline std::vector<SampledRow> CudaSampleWith(const Matrix& logits,
                                              const std::vector<SampleRow>& rows, Layout layout,
                                              int64_t padding = 5) {
  const auto vocab = static_cast<int64_t>(logits[0].size());
  std::vector<std::vector<SampledRow>> results(layout.ranks);
  ForRanks(layout.ranks, [&](int r, NcclCommunicator* ranks, CudaStream& stream) {
    const DeviceShard shard(logits, ShardOf(vocab, layout, r), padding);
    CudaSamplerConfig config;
    config.vocab = vocab;
    config.max_rows = 4;  // so that memory has to grow
    config.processors = 3;
    auto sampler = CudaSampler::Create(ranks, config);
    ASSERT_TRUE(sampler.ok()) << sampler.status();
    (*sampler)->Sample(shard.view(), rows, stream, &results[r]);
    const absl::Status status = stream.Synchronize();
    EXPECT_TRUE(status.ok()) << status;
  });
  for (int r = 1; r < layout.ranks; ++r) {
    EXPECT_EQ(results[r].size(), results[0].size());
    for (size_t i = 0; i < std::min(results[r].size(), results[0].size()); ++i) {
      SCOPED_TRACE(testing::Message() << "rank " << r << ", row " << i);
      ExpectSameBits(results[0][i], results[r][i]);
    }
  }
  return results[0];
}

// The log of the sum errs by 1e-6 or so; both results are rounded.
inline void ExpectLogprob(float got, float expected) {
  EXPECT_NEAR(got, expected, 1e-5 + std::abs(double{expected}) * 0x1p-23);
}
inline void ExpectScored(const ScoredToken& got, const ScoredToken& expected) {
  EXPECT_EQ(got.id, expected.id);
  ExpectLogprob(got.logprob, expected.logprob);
  ASSERT_EQ(got.top.size(), expected.top.size());
  for (size_t i = 0; i < got.top.size(); ++i) {
    EXPECT_EQ(got.top[i].id, expected.top[i].id) << "top " << i;
    ExpectLogprob(got.top[i].logprob, expected.top[i].logprob);
  }
}

// The GPU's answers in this layout are the CPU's.
inline void ExpectCpuAnswers(const Matrix& logits, const std::vector<SampleRow>& rows,
                             const std::vector<SampledRow>& got, const char* what) {
  const std::vector<SampledRow> expected = SampleWith(logits, rows, Layout{1, 1});
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(testing::Message() << what << ", row " << i);
    ExpectScored(got[i].sampled, expected[i].sampled);
    ExpectScored(got[i].scored, expected[i].scored);
  }
}

}  // namespace lapidary
