// Sampling on a GPU over Gemma's vocabulary, on one rank: time by events, bytes against memory.
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/device_bench_support.h"
#include "kernels/sampling/sample_cuda.h"

namespace lapidary {
namespace {

constexpr int kVocab = 262144 / kShrink;

// A step of rows that all ask for the same: a list of `count` tokens to draw from, edits, or (count
// 1) thresholds.
class Step {
 public:
  struct Wants {
    int count = 1, edits = 0;
    int top_k = 0;
    double top_p = 1;
  };
  Step(int64_t asked_rows, const Wants& wants)
      : rows_(static_cast<int>(std::max<int64_t>(1, asked_rows / kShrink))),
        count_(wants.count),
        logits_(Normal(int64_t{rows_} * kVocab)),
        tasks_(Tasks(rows_, wants)),
        jobs_(Jobs(rows_, wants.count)),
        edits_(Edits(rows_, wants.edits)),
        edited_(Counting(rows_)),
        edit_raws_((int64_t{rows_} * wants.edits + 1) * 4),
        pending_(rows_ * sizeof(PendingEdit)),
        lists_(int64_t{rows_} * kMaxTiles * wants.count * sizeof(TileEntry)),
        norms_(int64_t{rows_} * kMaxTiles * sizeof(TileNorm)),
        messages_(message_bytes()),
        row_norms_(rows_ * sizeof(RowNorm)),
        results_(rows_ * sizeof(SampleResult)),
        top_(sizeof(TopToken)),
        threshold_rows_(rows_ * sizeof(GpuThresholdRow)),
        histograms_(int64_t{rows_} * kThresholdBuckets * 8),
        kept_(rows_ * sizeof(ShardKept)),
        found_(rows_ * sizeof(FoundToken)),
        tile_kept_(int64_t{rows_} * kMaxTiles * sizeof(ShardKept)) {
    step_.tasks = tasks_.As<SampleTask>();
    step_.jobs = jobs_.As<ShardJob>();
    step_.edits = edits_.As<TokenEdit>();
    step_.rows = rows_;
    step_.logits = logits_.As<float>();
    step_.stride = step_.columns = kVocab;
    step_.edit_raws = edit_raws_.As<float>();
    step_.pending = pending_.As<PendingEdit>();
    step_.lists = lists_.As<TileEntry>();
    step_.norms = norms_.As<TileNorm>();
    step_.messages = messages_.As<unsigned char>();
    step_.message_bytes = message_bytes();
    step_.row_norms = row_norms_.As<RowNorm>();
    step_.results = results_.As<SampleResult>();
    step_.top = top_.As<TopToken>();
  }

  int64_t rows() const { return rows_; }
  int64_t logits_bytes() const { return int64_t{rows_} * kVocab * 4; }
  int64_t message_bytes() const { return MessageBytes(rows_, int64_t{rows_} * count_); }
  int64_t tiles() const { return step_.tiles(); }

  cudaError_t Lists(cudaStream_t stream) const {
    const cudaError_t error = LaunchShardTiles(step_, 0, rows_, stream);
    return error != cudaSuccess ? error : LaunchShardLists(step_, 0, rows_, count_, stream);
  }
  cudaError_t EditLogits(cudaStream_t stream) const {
    return LaunchLogitEdits(step_, edited_.As<int32_t>(), rows_, stream);
  }
  cudaError_t Draw(cudaStream_t stream) const {
    return LaunchDraw(step_, threshold_rows_.As<GpuThresholdRow>(), stream);
  }
  // From Draw's beginning to the token, with `blocks` for each row.
  cudaError_t FindThresholds(bool by_mass, int blocks, cudaStream_t stream) const {
    ThresholdStep t;
    t.step = step_;
    t.rows = threshold_rows_.As<GpuThresholdRow>();
    t.count = rows_;
    t.histograms = histograms_.As<int64_t>();
    t.kept = kept_.As<ShardKept>();
    t.found = found_.As<FoundToken>();
    t.tile_kept = tile_kept_.As<ShardKept>();
    cudaError_t error = Draw(stream);
    const auto then = [&error](cudaError_t next) { error = error != cudaSuccess ? error : next; };
    for (int round = 0; round < kThresholdRounds; ++round) {
      then(ClearHistograms(t, stream));
      then(LaunchThresholdHistogram(t, by_mass, round, blocks, stream));
      then(LaunchThresholdNarrow(t, by_mass, round, stream));
    }
    then(ClearKeptMass(t, stream));
    then(LaunchKeptMass(t, stream));
    then(LaunchFindToken(t, stream));
    then(LaunchFinishThresholds(t, stream));
    return error;
  }

 private:
  static std::vector<float> Normal(int64_t count) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> some(std::min<int64_t>(count, 1 << 20)), all;
    for (float& v : some) v = normal(random);
    while (std::ssize(all) < count) all.insert(all.end(), some.begin(), some.end());
    all.resize(count);
    return all;
  }
  static std::vector<SampleTask> Tasks(int rows, const Wants& wants) {
    std::vector<SampleTask> tasks(rows);
    for (int r = 0; r < rows; ++r) {
      SampleTask& task = tasks[r];
      task.logits_row = r;
      task.candidates = wants.count;
      task.candidates_at = r * wants.count;
      task.first_edit = r * wants.edits;
      task.edits = wants.edits;
      task.penalized = wants.edits > 0;
      task.penalties = {1.1f, 0.1f, 0.1f};
      task.scale = 1.44269504f;
      task.top_k = wants.top_k;
      task.top_p = wants.top_p;
      task.bits = uint64_t{0x9e3779b97f4a7c15} * static_cast<uint64_t>(r + 1);
      if (wants.top_k > 0 || wants.top_p < 1) task.threshold_row = r;
    }
    return tasks;
  }
  static std::vector<ShardJob> Jobs(int rows, int count) {
    std::vector<ShardJob> jobs(rows);
    for (int r = 0; r < rows; ++r) {
      jobs[r].task = r;
      jobs[r].count = count;
      jobs[r].list_at = r * kMaxTiles * count;
      jobs[r].message_at = r * count;
    }
    return jobs;
  }
  static std::vector<TokenEdit> Edits(int rows, int count) {
    std::vector<TokenEdit> edits(int64_t{rows} * count + 1);
    for (int64_t i = 0; i < int64_t{rows} * count; ++i) {
      edits[i].column = static_cast<int32_t>(i % count * (kVocab / count));
      edits[i].output_count = 1;
    }
    return edits;
  }
  static std::vector<int32_t> Counting(int count) {
    std::vector<int32_t> all(count);
    for (int i = 0; i < count; ++i) all[i] = i;
    return all;
  }

  const int rows_, count_;
  const Zeros logits_, tasks_, jobs_, edits_, edited_, edit_raws_, pending_, lists_, norms_;
  const Zeros messages_, row_norms_, results_, top_;
  const Zeros threshold_rows_, histograms_, kept_, found_, tile_kept_;
  SampleStep step_;
};

// Arguments: rows, tokens of a list. The logits, and the tiles' lists, which come out and in.
void BM_ShardLists(benchmark::State& state) {
  const Step step(state.range(0), {.count = static_cast<int>(state.range(1))});
  const int64_t lists = step.rows() * step.tiles() * state.range(1) * sizeof(TileEntry);
  TimeBytes(state, step.logits_bytes() + 2 * lists + step.message_bytes(),
            [&](cudaStream_t stream) { return step.Lists(stream); });
}
BENCHMARK(BM_ShardLists)->ArgsProduct({{1, 8, 64}, {1, 64, 256}})->UseManualTime();

// Arguments: rows, edits of a row. Logits are far apart: each is a sector of 32 bytes, in and out.
void BM_LogitEdits(benchmark::State& state) {
  const Step step(state.range(0), {.edits = static_cast<int>(state.range(1))});
  TimeBytes(state, step.rows() * state.range(1) * int64_t{sizeof(TokenEdit) + 2 * 32 + 4},
            [&](cudaStream_t stream) { return step.EditLogits(stream); });
}
BENCHMARK(BM_LogitEdits)->ArgsProduct({{1, 64}, {64, 1024}})->UseManualTime();

// Arguments: rows, candidates. Messages and tasks: few bytes, latency is the limit.
void BM_Draw(benchmark::State& state) {
  const Step step(state.range(0), {.count = static_cast<int>(state.range(1))});
  if (step.Lists(nullptr) != cudaSuccess) return state.SkipWithError("no device");
  TimeBytes(state,
            step.message_bytes() + step.rows() * int64_t{sizeof(SampleTask) + sizeof(SampleResult)},
            [&](cudaStream_t stream) { return step.Draw(stream); });
}
BENCHMARK(BM_Draw)->ArgsProduct({{1, 64}, {1, 64, 256}})->UseManualTime();

// Arguments: rows, by mass (top-p, else top-k). The logits three times for histograms and once for
// what is kept; histograms cleared, filled and read.
void BM_Thresholds(benchmark::State& state) {
  const bool by_mass = state.range(1) != 0;
  const Step step(state.range(0),
                  by_mass ? Step::Wants{.top_p = 0.95} : Step::Wants{.top_k = 1000});
  if (step.Lists(nullptr) != cudaSuccess) return state.SkipWithError("no device");
  const int processors = ThisDevice().chip.processors;
  const int blocks =
      static_cast<int>(std::clamp<int64_t>(4 * processors / step.rows(), 1, step.tiles()));
  const int64_t histograms = step.rows() * kThresholdBuckets * 8;
  TimeBytes(state, (kThresholdRounds + 1) * step.logits_bytes() + 3 * kThresholdRounds * histograms,
            [&](cudaStream_t stream) { return step.FindThresholds(by_mass, blocks, stream); });
}
BENCHMARK(BM_Thresholds)->ArgsProduct({{1, 8, 64}, {0, 1}})->UseManualTime();

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
