#include "worker/cuda/cuda_sampler.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

// Entries of tiles' lists that are in memory at a time: eight jobs of 256 tokens on the largest
// vocabulary, or 32 of 64.
constexpr int64_t kListEntries = 8 * int64_t{kMaxTiles} * kMaxListed;
// Rows by thresholds that are done at a time: a histogram is 16 KiB, for each rank.
constexpr int kThresholdGroup = 32;
constexpr int64_t kHistogramBytes = kThresholdBuckets * static_cast<int64_t>(sizeof(int64_t));
// What a row is expected to need.
constexpr int64_t kUsualEdits = 64, kUsualEntries = 128;

constexpr int64_t Align16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

template <class T>
int64_t BytesOf(const std::vector<T>& values) {
  return static_cast<int64_t>(values.size() * sizeof(T));
}
template <class T>
constexpr int64_t Bytes(int64_t count) {
  return count * static_cast<int64_t>(sizeof(T));
}

template <class T>
void Put(const std::vector<T>& values, int64_t offset, PinnedMemory& memory) {
  if (!values.empty()) std::memcpy(memory.data() + offset, values.data(), BytesOf(values));
}

template <class T>
T* At(DeviceMemory& memory, int64_t offset = 0) {
  return reinterpret_cast<T*>(memory.data() + offset);
}

absl::Status Launched(cudaError_t error) { return CudaStatus(error, "launch of the sampler"); }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaSampler>> CudaSampler::Create(DeviceAllGather& ranks,
                                                                 const CudaSamplerConfig& config) {
  constexpr int64_t kMaxVocab = int64_t{kMaxTiles} * kTileColumns;
  if (config.vocab < 1 || config.vocab > kMaxVocab || ranks.size() > kMaxSampleRanks) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a vocabulary of %d on %d GPUs: the sampler takes at most %d on %d",
                        config.vocab, ranks.size(), kMaxVocab, kMaxSampleRanks));
  }
  std::unique_ptr<CudaSampler> sampler(new CudaSampler(ranks, config));
  const int64_t rows = std::max(1, config.max_rows), jobs = 2 * rows, size = ranks.size();
  Layout usual;
  usual.input_bytes = Align16(Bytes<SampleTask>(rows)) + Align16(Bytes<ShardJob>(jobs)) +
                      Align16(Bytes<TokenEdit>(rows * kUsualEdits)) + Align16(Bytes<int32_t>(rows));
  usual.output_bytes = Align16(Bytes<SampleResult>(rows)) + Bytes<TopToken>(rows * 20);
  RETURN_IF_ERROR(sampler->input_.Reserve(usual.input_bytes));
  RETURN_IF_ERROR(sampler->output_.Reserve(usual.output_bytes));
  RETURN_IF_ERROR(sampler->lists_.Reserve(Bytes<TileEntry>(kListEntries)));
  RETURN_IF_ERROR(sampler->messages_.Reserve(size * MessageBytes(rows, rows * kUsualEntries)));
  RETURN_IF_ERROR(sampler->row_norms_.Reserve(Bytes<RowNorm>(rows)));
  RETURN_IF_ERROR(sampler->norms_.Reserve(Bytes<TileNorm>(jobs * kMaxTiles)));
  RETURN_IF_ERROR(sampler->edit_raws_.Reserve(Bytes<float>(rows * kUsualEdits)));
  RETURN_IF_ERROR(sampler->pending_.Reserve(Bytes<PendingEdit>(rows)));
  RETURN_IF_ERROR(sampler->threshold_rows_.Reserve(Bytes<ThresholdRow>(rows)));
  RETURN_IF_ERROR(sampler->histograms_.Reserve(size * kThresholdGroup * kHistogramBytes));
  RETURN_IF_ERROR(sampler->kept_.Reserve(size * Bytes<ShardKept>(kThresholdGroup)));
  RETURN_IF_ERROR(sampler->found_.Reserve(size * Bytes<FoundToken>(kThresholdGroup)));
  RETURN_IF_ERROR(sampler->tile_kept_.Reserve(Bytes<ShardKept>(kThresholdGroup * kMaxTiles)));
  for (int i = 0; i < 2; ++i) {
    Call& call = *sampler->calls_.emplace_back(std::make_unique<Call>());
    RETURN_IF_ERROR(call.input.Reserve(usual.input_bytes));
    RETURN_IF_ERROR(call.output.Reserve(usual.output_bytes));
  }
  return sampler;
}

int64_t CudaSampler::device_bytes() const {
  int64_t bytes = 0;
  for (const DeviceMemory* memory :
       {&input_, &output_, &lists_, &messages_, &row_norms_, &norms_, &edit_raws_, &pending_,
        &threshold_rows_, &histograms_, &kept_, &found_, &tile_kept_}) {
    bytes += memory->bytes();
  }
  return bytes;
}

void CudaSampler::Sample(const LogitsView& logits, std::vector<SampleRow> rows, Stream& stream,
                         std::vector<SampledRow>* out) {
  auto& cuda = static_cast<CudaStream&>(stream);
  Range shard = logits.vocab;  // without padding
  shard.end = std::max(shard.begin, std::min(shard.end, config_.vocab));
  Call& call = FreeCall();
  call.busy = true;
  call.rows = std::move(rows);
  MakeSamplePlan(call.rows, config_.vocab, shard, kListEntries, &plan_);
  call.top_at.clear();
  for (const SampleTask& task : plan_.tasks) call.top_at.push_back(task.top_at);
  const absl::Status enqueued =
      call.rows.empty() ? absl::OkStatus() : Enqueue(logits, shard, call, cuda.raw());
  cuda.WhenPassed([&call, enqueued, out] {
    if (enqueued.ok()) Deliver(call, out);
    call.busy = false;
    return enqueued;
  });
}

CudaSampler::Call& CudaSampler::FreeCall() {
  for (const std::unique_ptr<Call>& call : calls_) {
    if (!call->busy) return *call;
  }
  return *calls_.emplace_back(std::make_unique<Call>());
}

CudaSampler::Layout CudaSampler::LayOut() const {
  Layout layout;
  layout.jobs = Align16(BytesOf(plan_.tasks));
  layout.edits = layout.jobs + Align16(BytesOf(plan_.jobs));
  layout.edited = layout.edits + Align16(BytesOf(plan_.edits));
  layout.input_bytes = layout.edited + BytesOf(plan_.edited);
  layout.top = Align16(Bytes<SampleResult>(std::ssize(plan_.tasks)));
  layout.output_bytes = layout.top + Bytes<TopToken>(plan_.top);
  return layout;
}

// Grows what is too small. Rare (see the class): the stream is waited for, and twice the need is
// taken. Never within a capture.
absl::Status CudaSampler::Reserve(const Layout& layout, Call& call, cudaStream_t stream) {
  const int64_t rows = std::ssize(plan_.tasks), size = ranks_.size();
  const std::pair<DeviceMemory*, int64_t> needs[] = {
      {&input_, layout.input_bytes},
      {&output_, layout.output_bytes},
      {&lists_, Bytes<TileEntry>(plan_.lists)},
      {&messages_, size * MessageBytes(rows, plan_.entries)},
      {&row_norms_, Bytes<RowNorm>(rows)},
      {&norms_, Bytes<TileNorm>(std::ssize(plan_.jobs) * kMaxTiles)},
      {&edit_raws_, Bytes<float>(std::ssize(plan_.edits))},
      {&pending_, Bytes<PendingEdit>(rows)},
      {&threshold_rows_, Bytes<ThresholdRow>(plan_.threshold_rows)}};
  bool waited = false;
  for (const auto& [memory, bytes] : needs) {
    if (bytes <= memory->bytes()) continue;
    if (!waited) RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "sampler"));
    waited = true;
    RETURN_IF_ERROR(memory->Reserve(2 * bytes));
  }
  // The call's own pinned memory is not in use.
  if (layout.input_bytes > call.input.bytes()) {
    RETURN_IF_ERROR(call.input.Reserve(std::max(input_.bytes(), layout.input_bytes)));
  }
  if (layout.output_bytes > call.output.bytes()) {
    RETURN_IF_ERROR(call.output.Reserve(std::max(output_.bytes(), layout.output_bytes)));
  }
  return absl::OkStatus();
}

absl::Status CudaSampler::Gather(void* all, int64_t bytes, cudaStream_t stream) {
  if (ranks_.size() == 1) return absl::OkStatus();
  const auto* own = static_cast<unsigned char*>(all) + ranks_.rank() * bytes;
  return ranks_.AllGather(own, bytes, all, stream);
}

absl::Status CudaSampler::Enqueue(const LogitsView& logits, Range shard, Call& call,
                                  cudaStream_t stream) {
  const Layout layout = LayOut();
  RETURN_IF_ERROR(Reserve(layout, call, stream));
  Put(plan_.tasks, 0, call.input);
  Put(plan_.jobs, layout.jobs, call.input);
  Put(plan_.edits, layout.edits, call.input);
  Put(plan_.edited, layout.edited, call.input);
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(input_.data(), call.input.data(), static_cast<size_t>(layout.input_bytes),
                      cudaMemcpyHostToDevice, stream),
      "what is asked of the sampler"));

  SampleStep step;
  step.tasks = At<SampleTask>(input_);
  step.jobs = At<ShardJob>(input_, layout.jobs);
  step.edits = At<TokenEdit>(input_, layout.edits);
  step.rows = static_cast<int32_t>(plan_.tasks.size());
  step.logits = logits.data;
  step.stride = logits.stride;
  step.columns = static_cast<int32_t>(shard.size());
  step.first_id = static_cast<int32_t>(shard.begin);
  step.rank = ranks_.rank();
  step.ranks = ranks_.size();
  step.edit_raws = At<float>(edit_raws_);
  step.pending = At<PendingEdit>(pending_);
  step.lists = At<TileEntry>(lists_);
  step.norms = At<TileNorm>(norms_);
  step.messages = messages_.data();
  step.message_bytes = MessageBytes(step.rows, plan_.entries);
  step.row_norms = At<RowNorm>(row_norms_);
  step.results = At<SampleResult>(output_);
  step.top = At<TopToken>(output_, layout.top);

  RETURN_IF_ERROR(EnqueueGroups(step, plan_.groups, stream));
  RETURN_IF_ERROR(Launched(LaunchLogitEdits(step, At<int32_t>(input_, layout.edited),
                                            static_cast<int>(plan_.edited.size()), stream)));
  RETURN_IF_ERROR(EnqueueGroups(step, plan_.edited_groups, stream));
  RETURN_IF_ERROR(Gather(step.messages, step.message_bytes, stream));
  RETURN_IF_ERROR(Launched(LaunchDraw(step, At<ThresholdRow>(threshold_rows_), stream)));
  RETURN_IF_ERROR(EnqueueThresholds(step, stream));
  return CudaStatus(
      cudaMemcpyAsync(call.output.data(), output_.data(), static_cast<size_t>(layout.output_bytes),
                      cudaMemcpyDeviceToHost, stream),
      "what the sampler chose");
}

absl::Status CudaSampler::EnqueueGroups(const SampleStep& step, const std::vector<JobGroup>& groups,
                                        cudaStream_t stream) {
  for (const JobGroup& group : groups) {
    RETURN_IF_ERROR(Launched(LaunchShardTiles(step, group.first, group.last, stream)));
    RETURN_IF_ERROR(Launched(LaunchShardLists(step, group.first, group.last, group.most, stream)));
  }
  return absl::OkStatus();
}

absl::Status CudaSampler::EnqueueThresholds(const SampleStep& step, cudaStream_t stream) {
  for (int first = 0; first < plan_.threshold_rows; first += kThresholdGroup) {
    ThresholdStep t;
    t.step = step;
    t.rows = At<ThresholdRow>(threshold_rows_) + first;
    t.count = std::min(kThresholdGroup, plan_.threshold_rows - first);
    t.histograms = At<int64_t>(histograms_);
    t.kept = At<ShardKept>(kept_);
    t.found = At<FoundToken>(found_);
    t.tile_kept = At<ShardKept>(tile_kept_);
    // As many blocks as keep the device busy, each with a few tiles if there are many rows.
    const int blocks = std::clamp(4 * config_.processors / t.count, 1, std::max(1, step.tiles()));
    for (const bool by_mass : {false, true}) {
      if (!(by_mass ? plan_.by_mass : plan_.by_count)) continue;
      for (int round = 0; round < kThresholdRounds; ++round) {
        RETURN_IF_ERROR(Launched(ClearHistograms(t, stream)));
        RETURN_IF_ERROR(Launched(LaunchThresholdHistogram(t, by_mass, round, blocks, stream)));
        RETURN_IF_ERROR(Gather(t.histograms, t.count * kHistogramBytes, stream));
        RETURN_IF_ERROR(Launched(LaunchThresholdNarrow(t, by_mass, round, stream)));
      }
    }
    RETURN_IF_ERROR(Launched(ClearKeptMass(t, stream)));
    RETURN_IF_ERROR(Launched(LaunchKeptMass(t, stream)));
    RETURN_IF_ERROR(Gather(t.kept, Bytes<ShardKept>(t.count), stream));
    RETURN_IF_ERROR(Launched(LaunchFindToken(t, stream)));
    RETURN_IF_ERROR(Gather(t.found, Bytes<FoundToken>(t.count), stream));
    RETURN_IF_ERROR(Launched(LaunchFinishThresholds(t, stream)));
  }
  return absl::OkStatus();
}

void CudaSampler::Deliver(const Call& call, std::vector<SampledRow>* out) {
  out->assign(call.rows.size(), SampledRow());
  const auto* results = reinterpret_cast<const SampleResult*>(call.output.data());
  const auto* top = reinterpret_cast<const TopToken*>(
      call.output.data() + Align16(Bytes<SampleResult>(std::ssize(call.rows))));
  for (size_t i = 0; i < call.rows.size(); ++i) {
    const SampleRow& row = call.rows[i];
    const SampleResult& result = results[i];
    SampledRow& answer = (*out)[i];
    answer.sampled.id = answer.scored.id = -1;
    std::vector<TokenLogprob> listed;
    for (int32_t t = 0; t < result.listed; ++t) {
      const TopToken& token = top[call.top_at[i] + t];
      listed.push_back({token.id, token.logprob});
    }
    if (row.scored_token >= 0) {
      answer.scored.id = row.scored_token;
      answer.scored.logprob = result.scored_logprob;
      answer.scored.top = listed;
    }
    if (!row.samples) continue;
    answer.sampled.id = result.id;
    answer.sampled.logprob = result.logprob;
    answer.sampled.top = std::move(listed);
    if (row.counted_in != nullptr) ++row.counted_in->output[result.id];
  }
}

}  // namespace lapidary
