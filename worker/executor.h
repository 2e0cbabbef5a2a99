// One rank's side of a step: keeps every sequence's tokens, page tables and counts as the plans
// tell, builds the batch, runs model and sampler, and appends what was sampled.
//
// Every rank executes the same plans and arrives at the same tokens, so the state of all ranks
// stays the same without a word between them. Owner: the engine thread.
#pragma once
#include <array>
#include <cstdint>
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
  // Both outlive the executor.
  Executor(ModelRunner& runner, Sampler& sampler, const ExecutorConfig& config);

  // Runs one step to its end. INTERNAL for a plan that contradicts this rank's state (nothing has
  // been computed then), else what stream and collectives report. After an error the rank must end:
  // its state may differ from the others'.
  absl::StatusOr<StepResult> Execute(const StepPlan& plan);

  // Sequences the rank remembers.
  size_t sequences() const { return sequences_.size(); }

 private:
  struct Sequence {
    RequestId id;
    uint32_t choice = 0;
    int32_t prompt_len = 0;
    std::vector<TokenId> tokens;  // known: prompt, then generated
    int32_t cached_len = 0;       // of them in the KV pages
    std::array<std::vector<PageId>, kKvFamilies> pages;
    SamplingParams sampling;
    TokenCounts counts;

    void CountOutput(TokenId token) { ++counts.output[token]; }
  };
  // A wanted row of logits: whose, and of which plan row.
  struct Wanted {
    SampleRow sample;
    size_t plan_row = 0;
  };

  absl::Status Forget(const std::vector<RequestId>& ids);
  absl::Status Add(const NewSequence& added);
  // Checks the row against its sequence and takes its pages.
  absl::StatusOr<Sequence*> Prepare(const PlanRow& row);
  absl::Status CheckPages(const PlanRow& row, const Sequence& sequence) const;
  static void AppendTokens(const PlanRow& row, const Sequence& sequence, HostBatch* batch);
  static void AppendWanted(const PlanRow& row, size_t plan_row, const Sequence& sequence,
                           HostBatch* batch, std::vector<Wanted>* wanted);
  absl::Status Run(const HostBatch& batch, const std::vector<Wanted>& wanted,
                   std::vector<SampledRow>* sampled, StepResult* result);

  ModelRunner& runner_;
  Sampler& sampler_;
  const ExecutorConfig config_;
  std::unordered_map<RequestId, Sequence> sequences_;  // its values do not move
};

}  // namespace lapidary
