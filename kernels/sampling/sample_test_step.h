// A step's device memory for tests of the sampling kernels.
#pragma once
#include <algorithm>
#include <limits>
#include <memory>

#include "kernels/device_test_support.h"
#include "kernels/sampling/sample_cuda.h"
#include "kernels/sampling/token_weight.h"

namespace lapidary {

inline constexpr float kInf = std::numeric_limits<float>::infinity();

// One rank's step over rows of logits. Set tasks, jobs and edits, then Upload().
class TestStep {
 public:
  TestStep(std::vector<std::vector<float>> logits, int64_t stride, int first_id = 0, int rank = 0,
           int ranks = 1)
      : rows_(std::ssize(logits)), columns_(std::ssize(logits[0])), stride_(stride) {
    std::vector<float> flat(std::max<int64_t>(1, rows_ * stride), NAN);
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy(logits[r].begin(), logits[r].end(), flat.begin() + r * stride);
    }
    logits_ = std::make_unique<DeviceArray<float>>(flat);
    step_.logits = logits_->data();
    step_.stride = stride;
    step_.columns = static_cast<int32_t>(columns_);
    step_.first_id = first_id;
    step_.rank = rank;
    step_.ranks = ranks;
  }

  std::vector<SampleTask> tasks;
  std::vector<ShardJob> jobs;
  std::vector<TokenEdit> edits;
  int64_t entries = 0;  // of a message

  // Lists are laid out one job after the other.
  const SampleStep& Upload() {
    int64_t list_entries = 1, top = 1;
    for (ShardJob& job : jobs) {
      job.list_at = static_cast<int32_t>(list_entries - 1);
      list_entries += int64_t{step_.tiles()} * job.count;
    }
    for (const SampleTask& task : tasks) top += task.listed;
    step_.rows = static_cast<int32_t>(tasks.size());
    step_.message_bytes = MessageBytes(step_.rows, entries);
    tasks_ = Array(tasks);
    jobs_ = Array(jobs);
    edits_ = Array(edits);
    edit_raws_ = std::make_unique<DeviceArray<float>>(std::ssize(edits) + 1);
    pending_ = std::make_unique<DeviceArray<PendingEdit>>(step_.rows + 1);
    lists_ = std::make_unique<DeviceArray<TileEntry>>(list_entries);
    norms_ = std::make_unique<DeviceArray<TileNorm>>(std::ssize(jobs) * step_.tiles() + 1);
    messages_ = std::make_unique<DeviceArray<unsigned char>>(step_.ranks * step_.message_bytes + 1);
    row_norms_ = std::make_unique<DeviceArray<RowNorm>>(step_.rows + 1);
    results_ = std::make_unique<DeviceArray<SampleResult>>(step_.rows + 1);
    top_ = std::make_unique<DeviceArray<TopToken>>(top);
    step_.tasks = tasks_->data();
    step_.jobs = jobs_->data();
    step_.edits = edits_->data();
    step_.edit_raws = edit_raws_->data();
    step_.pending = pending_->data();
    step_.lists = lists_->data();
    step_.norms = norms_->data();
    step_.messages = messages_->data();
    step_.row_norms = row_norms_->data();
    step_.results = results_->data();
    step_.top = top_->data();
    return step_;
  }

  std::vector<float> Row(int64_t row) {
    const std::vector<float> all = logits_->Get();
    return {all.begin() + row * stride_, all.begin() + row * stride_ + columns_};
  }
  // Of this rank's message.
  std::vector<ShardSummary> GetSummaries() { return FromMessage<ShardSummary>(0, step_.rows); }
  std::vector<ShardEntry> GetEntries() {
    return FromMessage<ShardEntry>(MessageBytes(step_.rows, 0), entries);
  }
  std::vector<PendingEdit> GetPending() { return pending_->Get(); }
  std::vector<float> GetEditRaws() { return edit_raws_->Get(); }
  std::vector<SampleResult> GetResults() { return results_->Get(); }
  std::vector<TopToken> GetTop() { return top_->Get(); }
  DeviceArray<unsigned char>& messages() { return *messages_; }
  const SampleStep& step() const { return step_; }

 private:
  template <class T>
  static std::unique_ptr<DeviceArray<T>> Array(std::vector<T> values) {
    values.emplace_back();  // never empty
    return std::make_unique<DeviceArray<T>>(values);
  }
  template <class T>
  std::vector<T> FromMessage(int64_t offset, int64_t count) {
    const std::vector<unsigned char> bytes = messages_->Get();
    std::vector<T> values(count);
    if (count > 0) {
      std::memcpy(values.data(), bytes.data() + step_.rank * step_.message_bytes + offset,
                  count * sizeof(T));
    }
    return values;
  }

  SampleStep step_;
  const int64_t rows_, columns_, stride_;
  std::unique_ptr<DeviceArray<float>> logits_, edit_raws_;
  std::unique_ptr<DeviceArray<SampleTask>> tasks_;
  std::unique_ptr<DeviceArray<ShardJob>> jobs_;
  std::unique_ptr<DeviceArray<TokenEdit>> edits_;
  std::unique_ptr<DeviceArray<PendingEdit>> pending_;
  std::unique_ptr<DeviceArray<TileEntry>> lists_;
  std::unique_ptr<DeviceArray<TileNorm>> norms_;
  std::unique_ptr<DeviceArray<unsigned char>> messages_;
  std::unique_ptr<DeviceArray<RowNorm>> row_norms_;
  std::unique_ptr<DeviceArray<SampleResult>> results_;
  std::unique_ptr<DeviceArray<TopToken>> top_;
};

}  // namespace lapidary
