// Speed of the forward pass on a real checkpoint, without a server: prefill of one prompt, decode
// of one or several sequences. Also prints log-probabilities, to compare with other programs.
//
//   forward_bench CHECKPOINT [--compute int8] [--threads 2] [--prompt 512] [--decode 64] [--batch
//   1] forward_bench CHECKPOINT --score 2,818,5573,2811
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/shard_plan.h"
#include "worker/model_runner.h"

namespace lapidary {
namespace {

using Clock = std::chrono::steady_clock;

struct Flags {
  std::string path, compute = "int8", arith = "auto", score;
  int threads = 2, prompt = 512, decode = 64, batch = 1, repeat = 3, context = 0;
};

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

void Die(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// Sequences with pages of their own, `per_sequence` of each family.
class Session {
 public:
  Session(ModelRunner& runner, int sequences, int per_sequence) : runner_(runner) {
    for (int s = 0; s < sequences; ++s) {
      std::vector<PageId> table;
      for (int i = 0; i < per_sequence; ++i) table.push_back(PageId{s * per_sequence + i});
      tables_.push_back(std::move(table));
    }
  }

  // Tokens [start, start + ids.size()) of each sequence in [0, count).
  void Step(int count, int start, const std::vector<TokenId>& ids, bool all_logits) {
    HostBatch batch;
    batch.seq_begin.push_back(0);
    for (int s = 0; s < count; ++s) {
      for (size_t i = 0; i < ids.size(); ++i) {
        if (all_logits || i + 1 == ids.size()) {
          batch.logits_index.push_back(static_cast<int32_t>(batch.token_ids.size()));
        }
        batch.token_ids.push_back(ids[i]);
        batch.positions.push_back(start + static_cast<int>(i));
      }
      batch.seq_begin.push_back(static_cast<int32_t>(batch.token_ids.size()));
      batch.context_len.push_back(start + static_cast<int32_t>(ids.size()));
      for (auto& tables : batch.page_tables) tables.push_back(&tables_[s]);
    }
    Die(runner_.Forward(batch));
    Die(runner_.stream().Synchronize());
  }

 private:
  ModelRunner& runner_;
  std::vector<std::vector<PageId>> tables_;
};

void Score(ModelRunner& runner, const std::string& text) {
  std::vector<TokenId> ids;
  for (size_t at = 0; at < text.size();) {
    ids.push_back(std::atoi(text.c_str() + at));
    at = std::min(text.size(), text.find(',', at)) + 1;
  }
  Session session(runner, 1, static_cast<int>(ids.size()) / kPageTokens + 1);
  constexpr size_t kChunk = 64;
  for (size_t begin = 0; begin < ids.size(); begin += kChunk) {
    const size_t end = std::min(ids.size(), begin + kChunk);
    session.Step(1, static_cast<int>(begin),
                 std::vector<TokenId>(ids.begin() + begin, ids.begin() + end), true);
    const LogitsView view = runner.logits();
    for (size_t t = begin; t < end && t + 1 < ids.size(); ++t) {
      const float* row = view.data + static_cast<int64_t>(t - begin) * view.stride;
      double best = -1e300, total = 0;
      for (int64_t i = 0; i < view.vocab.size(); ++i) best = std::max(best, double{row[i]});
      for (int64_t i = 0; i < view.vocab.size(); ++i) total += std::exp(row[i] - best);
      std::printf("%.6f\n", row[ids[t + 1]] - best - std::log(total));
    }
  }
}

void Measure(ModelRunner& runner, const Flags& flags) {
  const int length = std::max(flags.prompt, flags.context + 1) + flags.decode;
  const int pages = length / kPageTokens + 1;
  Session session(runner, flags.batch, pages);
  std::vector<TokenId> prompt;
  for (int i = 0; i < flags.prompt; ++i) prompt.push_back(i * 37 % 5000 + 10);
  double best = 1e30;
  for (int i = 0; i < flags.repeat; ++i) {
    const auto begin = Clock::now();
    session.Step(1, 0, prompt, false);
    best = std::min(best, Seconds(begin));
  }
  std::printf("prefill %d tokens: %.1f ms, %.0f tokens/s\n", flags.prompt, best * 1e3,
              flags.prompt / best);
  std::vector<double> times;
  for (int i = 0; i < flags.decode; ++i) {
    const auto begin = Clock::now();
    session.Step(flags.batch, flags.context + i, {i * 37 % 5000 + 10}, false);
    times.push_back(Seconds(begin));
  }
  if (times.empty()) return;
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  std::printf("decode %d sequences at context %d: median %.3f ms, %.1f tokens/s (best %.3f ms)\n",
              flags.batch, flags.context, median * 1e3, flags.batch / median, times[0] * 1e3);
}

int Main(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const char* next = i + 1 < argc ? argv[i + 1] : "";
    if (arg.rfind("--", 0) != 0) {
      flags.path = arg;
      continue;
    }
    ++i;
    if (arg == "--compute") flags.compute = next;
    if (arg == "--arith") flags.arith = next;
    if (arg == "--score") flags.score = next;
    if (arg == "--threads") flags.threads = std::atoi(next);
    if (arg == "--prompt") flags.prompt = std::atoi(next);
    if (arg == "--decode") flags.decode = std::atoi(next);
    if (arg == "--batch") flags.batch = std::atoi(next);
    if (arg == "--repeat") flags.repeat = std::atoi(next);
    if (arg == "--context") flags.context = std::atoi(next);
  }
  if (flags.path.empty()) {
    std::fprintf(stderr, "usage: forward_bench CHECKPOINT [--compute fp32|bf16|int8] ...\n");
    return 2;
  }
  auto checkpoint = Checkpoint::Open(flags.path);
  Die(checkpoint.status());
  const auto plan = PlanShards((*checkpoint)->spec(), 1);
  Die(plan.status());
  auto comms = CreateInprocCommunicators(1);
  RunnerOptions options;
  options.compute = flags.compute == "fp32"   ? ComputeType::kFp32
                    : flags.compute == "bf16" ? ComputeType::kBf16
                                              : ComputeType::kInt8;
  options.arith = flags.arith;
  options.threads = flags.threads;
  options.max_step_tokens = std::max({flags.prompt, flags.batch, 64});
  options.max_logits_rows = std::max(flags.batch, 64);
  const auto begin = Clock::now();
  auto runner = ModelRunner::Load(**checkpoint, plan->ranks[0], options, *comms[0], nullptr);
  Die(runner.status());
  const int length = std::max(flags.prompt, flags.context + 1) + flags.decode;
  const int pages = std::max(flags.batch * (length / kPageTokens + 1), 4096);
  Die((*runner)->AllocateKv({pages, pages}));
  std::fprintf(stderr, "%s, %s, %d threads: loaded in %.2f s, %.1f MB of weights\n",
               flags.compute.c_str(), (*runner)->resolved_arith().c_str(), flags.threads,
               Seconds(begin), static_cast<double>((*runner)->weights_bytes()) / 1e6);
  if (!flags.score.empty()) {
    Score(**runner, flags.score);
  } else {
    Measure(**runner, flags);
  }
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) { return lapidary::Main(argc, argv); }
