// One rank's side of a step: keeps every sequence's tokens, page tables and counts as the plans
// tell, builds the batch, runs model and sampler, and appends what was sampled.
//
//   Submit(n + 1)  ...  Await() -> result of n      while the stream computes
//
// Up to two steps are on their way, so that the host's work for the next one is done while the
// stream computes. A step may begin with tokens that the one before it is still to sample: these go
// from sampler to embedding on the stream, and the host learns them later.
//
// Every rank executes the same plans and arrives at the same tokens, so the state of all ranks
// stays the same without a word between them. Owner: the engine thread.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/step_plan.h"
#include "worker/model_runner.h"
#include "worker/sampler.h"

namespace lapidary {

struct ExecutorConfig {
  uint64_t epoch = 1;                               // plans of another epoch are refused
  std::array<int32_t, kKvFamilies> pages = {0, 0};  // pool sizes; 0: no layer of that family
  int32_t max_logits_rows = 576;                    // as the runner was told
  int64_t vocab = 0;
};

class Executor {
 public:
  static constexpr int kMaxInFlight = 2;

  // Both outlive the executor.
  Executor(ModelRunner& runner, Sampler& sampler, const ExecutorConfig& config);
  // Waits for the stream when steps are on their way. Abort the communicator first if a rank is
  // gone.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Enqueues one step without waiting for the device. INTERNAL for a plan that contradicts this
  // rank's state (nothing of it is computed then).
  absl::Status Submit(const StepPlan& plan);
  // Waits for the oldest step on its way; what stream and collectives report. The steps behind a
  // failed one are dropped.
  absl::StatusOr<StepResult> Await();
  // Both, for one step at a time.
  absl::StatusOr<StepResult> Execute(const StepPlan& plan);
  // After an error of any of them the rank must end: its state may differ from the others'.

  // Steps submitted and not awaited.
  int in_flight() const { return static_cast<int>(in_flight_.size()); }
  // Sequences the rank remembers.
  size_t sequences() const { return sequences_.size(); }

 private:
  using Clock = std::chrono::steady_clock;

  // A token that a step on its way samples.
  struct Coming {
    uint64_t step = 0;
    int32_t row = 0;
    int32_t place = 0;  // in ModelRunner::sampled_ids()
  };
  struct Sequence {
    RequestId id;
    uint32_t choice = 0;
    int32_t prompt_len = 0;
    std::vector<TokenId> tokens;  // known: prompt, then generated
    std::vector<Coming> coming;   // those after them, oldest first: at most one per step
    int32_t cached_len = 0;       // in the KV pages once the steps on their way have run
    std::array<std::vector<PageId>, kKvFamilies> pages;
    SamplingParams sampling;
    TokenCounts counts;  // the stream's, once the sequence is added

    int64_t total_len() const { return std::ssize(tokens) + std::ssize(coming); }
  };
  // A wanted row of logits: whose, and of which plan row.
  struct Wanted {
    SampleRow sample;
    size_t plan_row = 0;
  };
  // A step on its way: all that the stream reads and writes of it.
  struct Step {
    StepResult result;
    std::vector<std::shared_ptr<Sequence>> sequences;  // of the plan's rows
    std::vector<Wanted> wanted;
    std::vector<std::vector<SampledRow>> slices;  // by the sampler, one slice of `wanted` each
    Clock::time_point begin, forward_end, end;    // on the stream
    uint64_t mark = 0;                            // behind its work
  };

  absl::Status Forget(const std::vector<RequestId>& ids);
  absl::Status Add(const NewSequence& added);
  // Checks the row against its sequence and takes its pages.
  absl::StatusOr<std::shared_ptr<Sequence>> Prepare(const PlanRow& row);
  static absl::Status CheckSource(const PlanRow& row, const Sequence& sequence);
  absl::Status CheckPages(const PlanRow& row, const Sequence& sequence) const;
  static void AppendTokens(const PlanRow& row, const Sequence& sequence, HostBatch* batch);
  static void AppendWanted(const PlanRow& row, size_t plan_row, Sequence& sequence,
                           const TokenId* sampled_ids, TokenId* id_out, HostBatch* batch,
                           std::vector<Wanted>* wanted);
  absl::Status Enqueue(const HostBatch& batch, Step& step);
  absl::Status Finish(Step& step);
  // Waits until the stream is done with all steps, and drops them.
  void Abandon();

  ModelRunner& runner_;
  Sampler& sampler_;
  const ExecutorConfig config_;
  const SampledIds sampled_ids_;
  std::unordered_map<RequestId, std::shared_ptr<Sequence>> sequences_;
  std::deque<std::unique_ptr<Step>> in_flight_;  // oldest first
  int half_ = 0;                                 // of sampled_ids_, for the next step
  Clock::time_point last_end_;                   // of the step awaited last
};

}  // namespace lapidary
