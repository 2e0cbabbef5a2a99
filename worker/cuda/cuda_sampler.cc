#include "worker/cuda/cuda_sampler.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

// Entries of tiles' lists that are in memory at a time: eight jobs of 256 tokens on the largest
// vocabulary, or 32 of 64.
constexpr int64_t kListEntries = 8 * int64_t{kMaxTiles} * kMaxListed;
// Rows by thresholds that are done at a time: a histogram is 16 KiB, for each rank.
constexpr int kThresholdGroup = 32;
constexpr int64_t kHistogramBytes = kThresholdBuckets * static_cast<int64_t>(sizeof(int64_t));
// What a row is expected to need.
constexpr std::string_view kWhat = "the sampler";
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
void Put(const std::vector<T>& values, int64_t offset, PinnedBuffer& memory) {
  if (!values.empty()) std::memcpy(memory.data<uint8_t>() + offset, values.data(), BytesOf(values));
}

template <class T>
T* At(DeviceBuffer& memory, int64_t offset = 0) {
  return reinterpret_cast<T*>(memory.data() + offset);
}

absl::Status Launched(cudaError_t error) { return CudaError("sampling", error); }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaSampler>> CudaSampler::Create(NcclCommunicator* ranks,
                                                                 const CudaSamplerConfig& config) {
  const int size = ranks == nullptr ? 1 : ranks->size();
  constexpr int64_t kMaxVocab = int64_t{kMaxTiles} * kTileColumns;
  if (config.vocab < 1 || config.vocab > kMaxVocab || size > kMaxSampleRanks) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a vocabulary of %d on %d GPUs: the sampler takes at most %d on %d",
                        config.vocab, size, kMaxVocab, kMaxSampleRanks));
  }
  std::unique_ptr<CudaSampler> sampler(new CudaSampler(ranks, config));
  const int64_t rows = std::max(1, config.max_rows), jobs = 2 * rows;
  Layout usual;
  usual.input_bytes = Align16(Bytes<SampleTask>(rows)) + Align16(Bytes<ShardJob>(jobs)) +
                      Align16(Bytes<TokenEdit>(rows * kUsualEdits)) + Align16(Bytes<int32_t>(rows));
  usual.output_bytes = Align16(Bytes<SampleResult>(rows)) + Bytes<TopToken>(rows * 20);
  RETURN_IF_ERROR(sampler->input_.Reserve(usual.input_bytes, kWhat));
  RETURN_IF_ERROR(sampler->output_.Reserve(usual.output_bytes, kWhat));
  RETURN_IF_ERROR(sampler->lists_.Reserve(Bytes<TileEntry>(kListEntries), kWhat));
  RETURN_IF_ERROR(
      sampler->messages_.Reserve(size * MessageBytes(rows, rows * kUsualEntries), kWhat));
  RETURN_IF_ERROR(sampler->row_norms_.Reserve(Bytes<RowNorm>(rows), kWhat));
  RETURN_IF_ERROR(sampler->norms_.Reserve(Bytes<TileNorm>(jobs * kMaxTiles), kWhat));
  RETURN_IF_ERROR(sampler->edit_raws_.Reserve(Bytes<float>(rows * kUsualEdits), kWhat));
  RETURN_IF_ERROR(sampler->pending_.Reserve(Bytes<PendingEdit>(rows), kWhat));
  RETURN_IF_ERROR(sampler->threshold_rows_.Reserve(Bytes<GpuThresholdRow>(rows), kWhat));
  RETURN_IF_ERROR(sampler->histograms_.Reserve(size * kThresholdGroup * kHistogramBytes, kWhat));
  RETURN_IF_ERROR(sampler->kept_.Reserve(size * Bytes<ShardKept>(kThresholdGroup), kWhat));
  RETURN_IF_ERROR(sampler->found_.Reserve(size * Bytes<FoundToken>(kThresholdGroup), kWhat));
  RETURN_IF_ERROR(
      sampler->tile_kept_.Reserve(Bytes<ShardKept>(kThresholdGroup * kMaxTiles), kWhat));
  for (int i = 0; i < 2; ++i) {
    Call& call = *sampler->calls_.emplace_back(std::make_unique<Call>());
    RETURN_IF_ERROR(call.input.Reserve(usual.input_bytes, kWhat));
    RETURN_IF_ERROR(call.output.Reserve(usual.output_bytes, kWhat));
  }
  return sampler;
}

int64_t CudaSampler::device_bytes() const {
  int64_t bytes = 0;
  for (const DeviceBuffer* memory :
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
      call.rows.empty() ? absl::OkStatus() : Enqueue(logits, shard, call, cuda);
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
absl::Status CudaSampler::Reserve(const Layout& layout, Call& call, CudaStream& stream) {
  const int64_t rows = std::ssize(plan_.tasks), size = ranks();
  const std::pair<DeviceBuffer*, int64_t> needs[] = {
      {&input_, layout.input_bytes},
      {&output_, layout.output_bytes},
      {&lists_, Bytes<TileEntry>(plan_.lists)},
      {&messages_, size * MessageBytes(rows, plan_.entries)},
      {&row_norms_, Bytes<RowNorm>(rows)},
      {&norms_, Bytes<TileNorm>(std::ssize(plan_.jobs) * kMaxTiles)},
      {&edit_raws_, Bytes<float>(std::ssize(plan_.edits))},
      {&pending_, Bytes<PendingEdit>(rows)},
      {&threshold_rows_, Bytes<GpuThresholdRow>(plan_.threshold_rows)}};
  bool waited = false;
  for (const auto& [memory, bytes] : needs) {
    if (bytes <= memory->bytes()) continue;
    if (!waited) RETURN_IF_ERROR(CudaError("sampling", cudaStreamSynchronize(stream.raw())));
    waited = true;
    RETURN_IF_ERROR(memory->Reserve(2 * bytes, kWhat));
  }
  // The call's own pinned memory is not in use.
  if (layout.input_bytes > call.input.bytes()) {
    RETURN_IF_ERROR(call.input.Reserve(std::max(input_.bytes(), layout.input_bytes), kWhat));
  }
  if (layout.output_bytes > call.output.bytes()) {
    RETURN_IF_ERROR(call.output.Reserve(std::max(output_.bytes(), layout.output_bytes), kWhat));
  }
  return absl::OkStatus();
}

void CudaSampler::Gather(void* all, int64_t bytes, CudaStream& stream) {
  if (ranks() == 1) return;
  ranks_->AllGather(static_cast<uint8_t*>(all) + rank() * bytes, bytes, all, stream);
}

absl::Status CudaSampler::Enqueue(const LogitsView& logits, Range shard, Call& call,
                                  CudaStream& stream) {
  const Layout layout = LayOut();
  RETURN_IF_ERROR(Reserve(layout, call, stream));
  Put(plan_.tasks, 0, call.input);
  Put(plan_.jobs, layout.jobs, call.input);
  Put(plan_.edits, layout.edits, call.input);
  Put(plan_.edited, layout.edited, call.input);
  RETURN_IF_CUDA_ERROR(
      "what is asked of the sampler",
      cudaMemcpyAsync(input_.data(), call.input.data(), static_cast<size_t>(layout.input_bytes),
                      cudaMemcpyHostToDevice, stream.raw()));

  SampleStep step;
  step.tasks = At<SampleTask>(input_);
  step.jobs = At<ShardJob>(input_, layout.jobs);
  step.edits = At<TokenEdit>(input_, layout.edits);
  step.rows = static_cast<int32_t>(plan_.tasks.size());
  step.logits = logits.data;
  step.stride = logits.stride;
  step.columns = static_cast<int32_t>(shard.size());
  step.first_id = static_cast<int32_t>(shard.begin);
  step.rank = rank();
  step.ranks = ranks();
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
                                            static_cast<int>(plan_.edited.size()), stream.raw())));
  RETURN_IF_ERROR(EnqueueGroups(step, plan_.edited_groups, stream));
  Gather(step.messages, step.message_bytes, stream);
  RETURN_IF_ERROR(Launched(LaunchDraw(step, At<GpuThresholdRow>(threshold_rows_), stream.raw())));
  RETURN_IF_ERROR(EnqueueThresholds(step, stream));
  return CudaError(
      "what the sampler chose",
      cudaMemcpyAsync(call.output.data(), output_.data(), static_cast<size_t>(layout.output_bytes),
                      cudaMemcpyDeviceToHost, stream.raw()));
}

absl::Status CudaSampler::EnqueueGroups(const SampleStep& step, const std::vector<JobGroup>& groups,
                                        CudaStream& stream) {
  for (const JobGroup& group : groups) {
    RETURN_IF_ERROR(Launched(LaunchShardTiles(step, group.first, group.last, stream.raw())));
    RETURN_IF_ERROR(
        Launched(LaunchShardLists(step, group.first, group.last, group.most, stream.raw())));
  }
  return absl::OkStatus();
}

absl::Status CudaSampler::EnqueueThresholds(const SampleStep& step, CudaStream& stream) {
  for (int first = 0; first < plan_.threshold_rows; first += kThresholdGroup) {
    ThresholdStep t;
    t.step = step;
    t.rows = At<GpuThresholdRow>(threshold_rows_) + first;
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
        RETURN_IF_ERROR(Launched(ClearHistograms(t, stream.raw())));
        RETURN_IF_ERROR(
            Launched(LaunchThresholdHistogram(t, by_mass, round, blocks, stream.raw())));
        Gather(t.histograms, t.count * kHistogramBytes, stream);
        RETURN_IF_ERROR(Launched(LaunchThresholdNarrow(t, by_mass, round, stream.raw())));
      }
    }
    RETURN_IF_ERROR(Launched(ClearKeptMass(t, stream.raw())));
    RETURN_IF_ERROR(Launched(LaunchKeptMass(t, stream.raw())));
    Gather(t.kept, Bytes<ShardKept>(t.count), stream);
    RETURN_IF_ERROR(Launched(LaunchFindToken(t, stream.raw())));
    Gather(t.found, Bytes<FoundToken>(t.count), stream);
    RETURN_IF_ERROR(Launched(LaunchFinishThresholds(t, stream.raw())));
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
