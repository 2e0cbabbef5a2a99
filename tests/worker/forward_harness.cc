#include "tests/worker/forward_harness.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "gtest/gtest.h"
#include "model/shard_plan.h"

namespace lapidary {

ForwardHarness::ForwardHarness(const Checkpoint& checkpoint, int ranks,
                               const RunnerOptions& options, int pages)
    : comms_(CreateInprocCommunicators(ranks)), vocab_(checkpoint.spec().vocab), pages_(pages) {
  const auto plan = PlanShards(checkpoint.spec(), ranks);
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) std::abort();
  runners_.resize(ranks);
  OnEveryRank([&](int r) {
    auto runner = ModelRunner::Load(checkpoint, plan->ranks[r], options, *comms_[r], nullptr);
    EXPECT_TRUE(runner.ok()) << runner.status();
    if (!runner.ok()) std::abort();
    runners_[r] = *std::move(runner);
    const absl::Status status = runners_[r]->AllocateKv({pages, pages});
    EXPECT_TRUE(status.ok()) << status;
  });
}

ForwardHarness::~ForwardHarness() = default;

void ForwardHarness::OnEveryRank(const std::function<void(int)>& fn) {
  std::vector<std::thread> threads;
  for (size_t r = 1; r < runners_.size(); ++r) {
    threads.emplace_back([&fn, r] { fn(static_cast<int>(r)); });
  }
  fn(0);
  for (std::thread& t : threads) t.join();
}

void ForwardHarness::Start(std::vector<std::vector<TokenId>> sequences) {
  sequences_ = std::move(sequences);
  done_.assign(sequences_.size(), 0);
  tables_.assign(sequences_.size(), {});
  next_page_ = 0;
}

std::vector<std::vector<float>> ForwardHarness::Step(const std::vector<Chunk>& chunks) {
  return Step(chunks, [](int) { return true; });
}

std::vector<std::vector<float>> ForwardHarness::Step(const std::vector<Chunk>& chunks,
                                                     const std::function<bool(int)>& wanted) {
  HostBatch batch;
  batch.seq_begin.push_back(0);
  for (const Chunk& chunk : chunks) {
    const int start = done_[chunk.sequence];
    for (int i = start; i < start + chunk.len; ++i) {
      const auto token = static_cast<int32_t>(batch.token_ids.size());
      if (wanted(token)) batch.logits_index.push_back(token);
      batch.token_ids.push_back(sequences_[chunk.sequence][i]);
      batch.positions.push_back(i);
      for (int f = 0; f < kKvFamilies; ++f) {
        auto& table = tables_[chunk.sequence][f];
        // Odd steps through the pool: neighbours in a table are not neighbours in memory.
        if (static_cast<int>(table.size()) <= i / kPageTokens) {
          table.push_back(PageId{(next_page_++ * 7 + 3) % pages_});
        }
      }
    }
    done_[chunk.sequence] += chunk.len;
    batch.seq_begin.push_back(static_cast<int32_t>(batch.token_ids.size()));
    batch.context_len.push_back(done_[chunk.sequence]);
    for (int f = 0; f < kKvFamilies; ++f) {
      batch.page_tables[f].push_back(&tables_[chunk.sequence][f]);
    }
  }
  const size_t tokens = batch.logits_index.size();
  std::vector<std::vector<float>> logits(tokens, std::vector<float>(vocab_));
  OnEveryRank([&](int r) {
    ModelRunner& runner = *runners_[r];
    absl::Status status = runner.Forward(batch);
    EXPECT_TRUE(status.ok()) << status;
    size_t row = 0;
    while (status.ok() && row < tokens) {
      const LogitsView view = runner.logits();
      status = runner.stream().Synchronize();
      EXPECT_TRUE(status.ok()) << status;
      for (int64_t i = 0; i < view.rows; ++i, ++row) {
        std::copy_n(view.data + i * view.stride, view.vocab.size(),
                    logits[row].begin() + view.vocab.begin);
      }
      if (row < tokens) runner.EnqueueLogits(static_cast<int64_t>(row));
    }
  });
  return logits;
}

std::vector<std::vector<float>> ForwardHarness::Whole(const std::vector<TokenId>& tokens) {
  Start({tokens});
  return Step({{0, static_cast<int>(tokens.size())}});
}

std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  double best = -1e300, total = 0;
  for (const float v : logits) best = std::max(best, double{v});
  for (const float v : logits) total += std::exp(v - best);
  std::vector<double> out;
  for (const float v : logits) out.push_back(v - best - std::log(total));
  return out;
}

}  // namespace lapidary
