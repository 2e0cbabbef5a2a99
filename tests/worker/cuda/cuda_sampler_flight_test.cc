// Calls of the GPU's sampler that are on their way together: tokens the host does not know yet,
// slices of a step, memory that grows meanwhile.
#include "tests/worker/cuda/cuda_sampler_harness.h"

namespace lapidary {
namespace {

// One sequence on every rank, decoded two steps deep as the executor does it: step n + 1 is
// enqueued before the host knows what step n samples.
struct Sequence {
  SamplingParams params;
  TokenCounts counts;
};

// The tokens of `steps` steps, logits[n] being those of step n.
std::vector<TokenId> DecodeTwoDeep(const Matrix& logits, const Sequence& sequence, Layout layout) {
  const auto vocab = static_cast<int64_t>(logits[0].size());
  const auto steps = static_cast<int>(logits.size());
  std::vector<std::vector<TokenId>> tokens(layout.ranks);
  ForRanks(layout.ranks, [&](int r, NcclCommunicator* ranks, CudaStream& stream) {
    CudaSamplerConfig config;
    config.vocab = vocab;
    config.max_rows = 2;
    const auto sampler = CudaSampler::Create(ranks, config);
    ASSERT_TRUE(sampler.ok()) << sampler.status();
    TokenCounts counts = sequence.counts;
    DeviceArray<TokenId> ids(2);  // halves that steps take turns with
    std::vector<std::unique_ptr<DeviceShard>> shards;
    std::vector<std::vector<SampledRow>> out(steps);
    std::vector<uint64_t> marks(steps);
    const auto wait = [&](int n) {
      const absl::Status status = stream.Wait(marks[n]);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(out[n].size(), 1u);
      tokens[r].push_back(out[n][0].sampled.id);
    };
    for (int n = 0; n < steps; ++n) {
      shards.push_back(
          std::make_unique<DeviceShard>(Matrix{logits[n]}, ShardOf(vocab, layout, r), 4));
      SampleRow row;
      row.samples = true;
      row.params = &sequence.params;
      row.counts = row.counted_in = &counts;
      row.position = n;
      row.generated = n;
      row.id_out = ids.data() + n % 2;
      if (n > 0) row.pending_id = ids.data() + (n - 1) % 2;
      (*sampler)->Sample(shards[n]->view(), {row}, stream, &out[n]);
      marks[n] = stream.Record();
      if (n > 0) wait(n - 1);
    }
    wait(steps - 1);
    int total = 0;
    for (const auto& [id, count] : counts.output) total += count;
    for (const auto& [id, count] : sequence.counts.output) total -= count;
    EXPECT_EQ(total, steps) << "every token is counted once";
  });
  for (int r = 1; r < layout.ranks; ++r) EXPECT_EQ(tokens[r], tokens[0]);
  return tokens[0];
}

// The same, one step at a time on the CPU.
std::vector<TokenId> DecodeOnCpu(const Matrix& logits, const Sequence& sequence) {
  TokenCounts counts = sequence.counts;
  std::vector<TokenId> tokens;
  for (size_t n = 0; n < logits.size(); ++n) {
    SampleRow row;
    row.samples = true;
    row.params = &sequence.params;
    row.counts = row.counted_in = &counts;
    row.position = static_cast<int32_t>(n);
    row.generated = static_cast<int32_t>(n);
    tokens.push_back(SampleWith({logits[n]}, {row}, Layout{1, 1})[0].sampled.id);
  }
  return tokens;
}

class PendingToken : public testing::TestWithParam<Layout> {};

// Logits that all steps have in common: token 70 leads by 10, then tokens 30 and 71 follow it by a
// little. A penalty of 1 each time says which is next, and a token counted twice, or not at all, or
// in the wrong step, changes the sequence.
TEST_P(PendingToken, CountsExactlyOnce) {
  LAPIDARY_NEEDS_DEVICES(GetParam().ranks);
  constexpr int kVocab = 100, kSteps = 12;
  std::vector<float> row(kVocab, -5.0f);
  row[70] = 10;
  row[30] = 9.5f;
  row[71] = 8.7f;
  const Matrix logits(kSteps, row);
  Sequence sequence;
  sequence.params.temperature = 0;
  sequence.params.frequency_penalty = 1;
  // 70 10, 30 9.5, 70 9, 71 8.7, 30 8.5, 70 8, 71 7.7, 30 7.5 ...
  const std::vector<TokenId> expected = {70, 30, 70, 71, 30, 70, 71, 30, 70, 71, 30, 70};
  EXPECT_EQ(DecodeOnCpu(logits, sequence), expected);
  EXPECT_EQ(DecodeTwoDeep(logits, sequence, GetParam()), expected);
}

TEST_P(PendingToken, GivesTheCpusSequences) {
  LAPIDARY_NEEDS_DEVICES(GetParam().ranks);
  constexpr int kVocab = 60, kSteps = 25;
  std::mt19937 random(8);
  for (int round = 0; round < 4; ++round) {
    const Matrix logits = RandomLogits(kSteps, kVocab, 1, 50 + round);
    Sequence sequence;
    sequence.params.temperature = round % 2 == 0 ? 0.0f : 0.8f;
    sequence.params.top_k = round == 3 ? 0 : 20;
    sequence.params.repetition_penalty = 1.5f;
    sequence.params.presence_penalty = 0.5f;
    sequence.params.frequency_penalty = 0.9f;
    sequence.params.logit_bias = {{3, 1.0f}, {59, 0.5f}};
    sequence.params.stop_ids = {7};
    sequence.params.min_tokens = 10;
    sequence.params.seed = 99 + round;
    for (int i = 0; i < 8; ++i) ++sequence.counts.prompt[static_cast<TokenId>(random() % kVocab)];
    for (int i = 0; i < 8; ++i) ++sequence.counts.output[static_cast<TokenId>(random() % kVocab)];
    EXPECT_EQ(DecodeTwoDeep(logits, sequence, GetParam()), DecodeOnCpu(logits, sequence)) << round;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, PendingToken,
                         testing::Values(Layout{1, 1, 1}, Layout{2, 1, 1}, Layout{3, 1, 32}),
                         [](const auto& info) {
                           return std::to_string(info.param.ranks) + "_ranks";
                         });

// Without penalties nobody counts, whatever is pending.
TEST(PendingTokens, MeanNothingWithoutPenalties) {
  const Matrix logits = RandomLogits(1, 500, 2, 4);
  SamplingParams params;
  DeviceArray<TokenId> id(std::vector<TokenId>{17});
  std::vector<SampleRow> rows = Rows(1, params);
  const auto expected = CudaSampleWith(logits, rows, Layout{1, 1});
  rows[0].pending_id = id.data();
  ExpectSameBits(CudaSampleWith(logits, rows, Layout{1, 1})[0], expected[0]);
}

// A step in slices, and steps of all sizes, before anybody waits: each call has its own pinned
// memory, and what the device has too little of grows in between.
TEST(CallsInFlight, DoNotDisturbEachOther) {
  constexpr int kVocab = 6000;
  CudaSamplerConfig config;
  config.vocab = kVocab;
  config.max_rows = 1;
  const auto sampler = CudaSampler::Create(nullptr, config);
  ASSERT_TRUE(sampler.ok()) << sampler.status();
  const int64_t before = (*sampler)->device_bytes();
  const auto stream = CudaStream::Create();
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::vector<SamplingParams> params(4);
  params[0].temperature = 0;
  params[1].top_k = 256;
  params[2].top_p = 0.9f;
  params[3].top_k = 1000;
  params[3].presence_penalty = 0.5f;
  TokenCounts counts;
  for (int i = 0; i < 5000; ++i) counts.output[i] = 1 + i % 3;
  struct Call {
    Matrix logits;
    std::unique_ptr<DeviceShard> shard;
    std::vector<SampleRow> rows;
    std::vector<SampledRow> out;
  };
  std::vector<Call> calls(7);
  for (size_t c = 0; c < calls.size(); ++c) {
    Call& call = calls[c];
    constexpr int kSizes[] = {1, 3, 40, 0, 2, 70, 5};
    const int size = kSizes[c];
    call.logits = RandomLogits(std::max(1, size), kVocab, 3, static_cast<uint32_t>(c));
    call.shard = std::make_unique<DeviceShard>(call.logits, Range{0, kVocab}, 4);
    call.rows = Rows(size, params[c % 4], &counts);
    for (int i = 0; i < size; ++i) {
      call.rows[i].params = &params[(c + i) % 4];
      call.rows[i].top_logprobs = i % 4 == 0 ? 20 : 0;
      call.rows[i].scored_token = i % 3 == 0 ? 77 : -1;
    }
    (*sampler)->Sample(call.shard->view(), call.rows, **stream, &call.out);
  }
  ASSERT_TRUE((*stream)->Synchronize().ok());
  EXPECT_GT((*sampler)->device_bytes(), before);
  for (const Call& call : calls) {
    if (call.rows.empty()) {
      EXPECT_TRUE(call.out.empty());
      continue;
    }
    ExpectCpuAnswers(call.logits, call.rows, call.out, "call");
  }
  const int64_t grown = (*sampler)->device_bytes();
  std::vector<SampledRow> again;
  const DeviceShard shard(calls[5].logits, Range{0, kVocab}, 4);
  (*sampler)->Sample(shard.view(), calls[5].rows, **stream, &again);
  ASSERT_TRUE((*stream)->Synchronize().ok());
  EXPECT_EQ((*sampler)->device_bytes(), grown) << "a call like one before allocates nothing";
  for (size_t i = 0; i < again.size(); ++i) ExpectSameBits(again[i], calls[5].out[i]);
}

TEST(CallsInFlight, PutIdsInDeviceMemory) {
  constexpr int kRows = 9, kVocab = 700;
  const Matrix logits = RandomLogits(kRows, kVocab, 3, 5);
  const DeviceShard shard(logits, Range{0, kVocab}, 4);
  std::vector<SamplingParams> params(3);
  params[0].temperature = 0;
  params[1].top_k = 50;
  DeviceArray<TokenId> ids(kRows);
  std::vector<SampleRow> rows = Rows(kRows, params[0]);
  for (int i = 0; i < kRows; ++i) {
    rows[i].params = &params[i % 3];
    rows[i].id_out = i == 4 ? nullptr : ids.data() + i;
  }
  CudaSamplerConfig config;
  config.vocab = kVocab;
  const auto sampler = CudaSampler::Create(nullptr, config);
  ASSERT_TRUE(sampler.ok()) << sampler.status();
  const auto stream = CudaStream::Create();
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::vector<SampledRow> out;
  (*sampler)->Sample(shard.view(), rows, **stream, &out);
  ASSERT_TRUE((*stream)->Synchronize().ok());
  const std::vector<TokenId> got = ids.Get();
  for (int i = 0; i < kRows; ++i) EXPECT_EQ(got[i], i == 4 ? -1 : out[i].sampled.id) << i;
}

}  // namespace
}  // namespace lapidary
