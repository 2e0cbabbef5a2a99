// Runs a model over sequences for tests: page tables, steps cut any way, one rank or several in one
// process.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "model/checkpoint.h"
#include "worker/model_runner.h"

namespace lapidary {

// Some tokens of one sequence in a step.
struct Chunk {
  int sequence = 0;
  int len = 0;
};

class ForwardHarness {
 public:
  // Loads on `ranks` ranks; fails the test when that fails.
  ForwardHarness(const Checkpoint& checkpoint, int ranks, const RunnerOptions& options,
                 int pages = 64);
  ~ForwardHarness();

  // Takes the sequences' tokens; forgets all keys.
  void Start(std::vector<std::vector<TokenId>> sequences);
  // One step: the next `len` tokens of each chunk's sequence. Returns the logits [V] of every token
  // of the step, in order.
  std::vector<std::vector<float>> Step(const std::vector<Chunk>& chunks);
  // The same, with logits only where wanted(token of the step) says so.
  std::vector<std::vector<float>> Step(const std::vector<Chunk>& chunks,
                                       const std::function<bool(int)>& wanted);
  // Everything of one sequence in one step.
  std::vector<std::vector<float>> Whole(const std::vector<TokenId>& tokens);

  ModelRunner& runner(int rank) { return *runners_[rank]; }
  void OnEveryRank(const std::function<void(int)>& fn);

 private:
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<ModelRunner>> runners_;
  int64_t vocab_ = 0;
  int pages_ = 0;
  int next_page_ = 0;
  std::vector<std::vector<TokenId>> sequences_;
  std::vector<int> done_;  // tokens of each sequence in the pages
  std::vector<std::array<std::vector<PageId>, kKvFamilies>> tables_;
};

std::vector<double> LogSoftmax(const std::vector<float>& logits);

}  // namespace lapidary
