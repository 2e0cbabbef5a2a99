// Helpers for tests that run the tiny checkpoints of tests/golden/models: the recorded cases, and a
// tensor-parallel group in this process that is driven step by step without an engine.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "worker/comm/communicator.h"
#include "worker/model_runner.h"

namespace lapidary {

// What transformers computed for one prompt. ids = prompt + continuation.
struct GoldenCase {
  std::string name;
  std::vector<TokenId> prompt;
  std::vector<TokenId> continuation;              // greedy
  std::vector<double> logprobs;                   // [i]: of ids[i + 1] given ids[0..i]
  std::vector<std::vector<TokenId>> top_ids;      // [i]: the five likeliest, best first
  std::vector<std::vector<double>> top_logprobs;  // [i]: theirs
  std::vector<double> last_prompt_logits;         // [V]
};

struct GoldenModel {
  std::string name;    // folder
  std::string family;  // "31B-like" ...
  std::string path;
  std::vector<GoldenCase> cases;
};

// The folders of tests/golden/models, in order.
const std::vector<std::string>& GoldenNames();
absl::StatusOr<GoldenModel> ReadGolden(const std::string& name);

// Logits of one step, joined over the ranks: [rows][V].
using Logits = std::vector<std::vector<float>>;

struct GroupOptions {
  int tp = 1;
  ComputeType compute = ComputeType::kFp32;
  std::string arith = "auto";
  std::string kv_format = "auto";
  std::string kv_type = "auto";
  int max_logits_rows = 576;
  int zeroed_rank = -1;     // this rank reads zeros instead of its weights
  std::string gpu_library;  // not empty: ranks of GPUs, of this library
};

// All ranks of a group. One thread drives it: work runs on the runners' streams (of GPUs: on a
// thread per rank, which is what their collectives expect).
class GoldenGroup {
 public:
  static absl::StatusOr<std::unique_ptr<GoldenGroup>> Create(const std::string& path,
                                                             const GroupOptions& options);
  ~GoldenGroup();

  // A sequence's tokens so far and its pages. Page ids are handed out in a scrambled order, and a
  // sliding page behind the window is taken back and its entry made invalid.
  struct Sequence {
    std::vector<TokenId> ids;
    int computed = 0;
    std::array<std::vector<PageId>, kKvFamilies> pages;
  };

  // Computes the next `counts[b]` tokens of every sequence in one step and returns the logits of
  // all of them, sequence by sequence.
  absl::StatusOr<Logits> Step(const std::vector<Sequence*>& sequences,
                              const std::vector<int>& counts);
  void Release(Sequence& sequence);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelRunner& runner(int rank) const { return *runners_[rank]; }

 private:
  GoldenGroup() = default;
  void AddPages(Sequence& sequence, int first_query, int end);
  absl::Status LoadGpus(const GroupOptions& options, const RunnerOptions& runner_options);
  absl::StatusOr<Logits> Gather(int64_t rows);
  absl::StatusOr<Logits> StepOnGpus(const HostBatch& batch);
  // fn(rank) for every rank, each on a thread of its own; the first error.
  absl::Status OnAllRanks(const std::function<absl::Status(int)>& fn);

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Checkpoint> zeros_;
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<ModelRunner>> runners_;
  std::vector<Range> vocab_;    // of each rank; GPUs only
  std::vector<Logits> on_gpu_;  // rows that each rank has shown
  std::array<std::vector<PageId>, kKvFamilies> free_pages_;
  int max_logits_rows_ = 0;
  int window_ = 0;
};

}  // namespace lapidary
