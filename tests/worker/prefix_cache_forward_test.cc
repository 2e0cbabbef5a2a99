// The prefix cache changes no bit: tiny checkpoints of every family through scheduler, executors
// and model, with the cache off and each request alone, against the cache on: missed, found, side
// by side in chunks and two deep, and found again after a preemption.
#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "engine/kv_manager.h"
#include "engine/scheduler.h"
#include "gtest/gtest.h"
#include "model/shard_plan.h"
#include "tests/worker/golden_model.h"
#include "worker/comm/communicator.h"
#include "worker/executor.h"
#include "worker/sampler.h"

namespace lapidary {
namespace {

using ::testing::Combine;
using ::testing::Values;
using ::testing::ValuesIn;

constexpr int32_t kPages = 64;  // of each family's pool in device memory
constexpr int32_t kMaxTokens = 12;

struct Answer {
  std::vector<ScoredToken> tokens;
  int32_t cached = -1;
};

bool SameBits(const Answer& a, const Answer& b) {
  const auto same = [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  };
  if (a.tokens.size() != b.tokens.size()) return false;
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    const ScoredToken &x = a.tokens[i], &y = b.tokens[i];
    if (x.id != y.id || !same(x.logprob, y.logprob) || x.top.size() != y.top.size()) return false;
    for (size_t k = 0; k < x.top.size(); ++k) {
      if (x.top[k].id != y.top[k].id || !same(x.top[k].logprob, y.top[k].logprob)) return false;
    }
  }
  return true;
}

// All ranks of a group, driven from one thread: work runs on the runners' streams.
class Group {
 public:
  Group(const std::string& path, int tp, ComputeType compute, const std::string& kv_type)
      : checkpoint_(*Checkpoint::Open(path)), comms_(CreateInprocCommunicators(tp)) {
    const ShardPlan plan = *PlanShards(checkpoint_->spec(), tp);
    RunnerOptions options;
    options.compute = compute;
    options.kv_type = kv_type;
    options.max_context = checkpoint_->spec().max_context;
    for (int rank = 0; rank < tp; ++rank) {
      auto runner = ModelRunner::Load(*checkpoint_, plan.ranks[rank], options, *comms_[rank],
                                      [](int64_t, int64_t) {});
      EXPECT_TRUE(runner.ok()) << runner.status();
      runners_.push_back(*std::move(runner));
      EXPECT_TRUE(runners_[rank]->AllocateKv({kPages, kPages}).ok());
      auto sampler = runners_[rank]->CreateSampler(*comms_[rank], checkpoint_->spec().vocab);
      EXPECT_TRUE(sampler.ok()) << sampler.status();
      samplers_.push_back(*std::move(sampler));
    }
    for (const LayerSpec& layer : checkpoint_->spec().layers) {
      window = std::max(window, layer.window);
    }
  }

  // Runs the requests to their ends, those of one batch side by side. The next batch comes when the
  // one before has ended, or after so many steps.
  std::vector<Answer> Run(const SchedulerConfig& config,
                          const std::vector<std::vector<EngineRequest>>& batches,
                          int steps_between = 1 << 20) {
    ExecutorConfig executor_config;
    executor_config.pages = {kPages, kPages};
    executor_config.vocab = checkpoint_->spec().vocab;
    std::vector<std::unique_ptr<Executor>> executors;
    for (size_t r = 0; r < runners_.size(); ++r) {
      executors.push_back(std::make_unique<Executor>(*runners_[r], *samplers_[r], executor_config));
    }
    const std::unique_ptr<Scheduler> scheduler = Scheduler::Create(config);
    std::map<RequestId, Answer> answers;
    for (const std::vector<EngineRequest>& batch : batches) {
      for (const EngineRequest& request : batch) {
        const absl::Status status = scheduler->Submit(request, 0);
        EXPECT_TRUE(status.ok()) << status;
      }
      const bool last = &batch == &batches.back();
      for (int step = 0; last || step < steps_between; ++step) {
        if (scheduler->idle() || testing::Test::HasFailure()) break;
        while (const std::optional<StepPlan> plan = scheduler->Plan(0)) {
          for (auto& executor : executors) {
            const absl::Status status = executor->Submit(*plan);
            EXPECT_TRUE(status.ok()) << status;
          }
        }
        StepResult result;
        for (size_t r = 0; r < executors.size(); ++r) {
          absl::StatusOr<StepResult> got = executors[r]->Await();
          EXPECT_TRUE(got.ok()) << got.status();
          if (got.ok() && r == 0) result = *std::move(got);
        }
        if (testing::Test::HasFailure()) break;
        for (EngineEvent& event : scheduler->Complete(result, 0)) {
          EXPECT_NE(event.finish, FinishReason::kError) << event.error;
          Answer& answer = answers[event.id];
          if (event.cached_tokens >= 0) answer.cached = event.cached_tokens;
          for (ScoredToken& token : event.tokens) answer.tokens.push_back(std::move(token));
        }
      }
    }
    stats = scheduler->stats();
    std::vector<Answer> in_order;
    for (auto& entry : answers) in_order.push_back(std::move(entry.second));
    return in_order;
  }

  int64_t vocab() const { return checkpoint_->spec().vocab; }

  int32_t window = 0;
  EngineStats stats;  // of the last run

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<ModelRunner>> runners_;
  std::vector<std::unique_ptr<Sampler>> samplers_;
};

// Requests that begin alike: for 17 to 80 tokens, so before, at and behind the ends of pages, and
// shorter and longer than the windows (9 to 32). Two greedy, the others sampled.
std::vector<EngineRequest> Requests(int64_t vocab) {
  std::mt19937 random(11);
  const auto token = [&] { return static_cast<TokenId>(random() % static_cast<uint64_t>(vocab)); };
  std::vector<TokenId> common;
  for (int i = 0; i < 80; ++i) common.push_back(token());
  std::vector<EngineRequest> requests;
  for (const auto& [shared, own] : std::vector<std::pair<int, int>>{
           {80, 0}, {80, 0}, {17, 30}, {64, 7}, {63, 1}, {48, 0}, {65, 40}, {80, 25}}) {
    EngineRequest request;
    NewSequence& sequence = request.sequence;
    sequence.id = RequestId{requests.size() + 1};
    sequence.tokens.assign(common.begin(), common.begin() + shared);
    for (int i = 0; i < own; ++i) sequence.tokens.push_back(token());
    sequence.prompt_len = static_cast<int32_t>(sequence.tokens.size());
    sequence.sampling.temperature = requests.size() % 4 == 1 ? 0.0f : 0.9f;
    sequence.sampling.repetition_penalty = requests.size() % 3 == 2 ? 1.2f : 1.0f;
    sequence.sampling.seed = 1000 + requests.size();
    sequence.sampling.logprobs = 2;
    sequence.sampling.max_tokens = kMaxTokens;
    requests.push_back(std::move(request));
  }
  return requests;
}

class PrefixCacheForwardTest : public ::testing::TestWithParam<std::tuple<std::string, int>> {};

TEST_P(PrefixCacheForwardTest, OffMissedFoundAndAfterPreemptionAreTheSameBits) {
  const auto& [name, tp] = GetParam();
  for (const auto& [compute, kv_type] :
       std::vector<std::pair<ComputeType, std::string>>{{ComputeType::kFp32, "auto"},
                                                        {ComputeType::kBf16, "auto"},
                                                        {ComputeType::kBf16, "int8"}}) {
    SCOPED_TRACE(testing::Message()
                 << "compute " << static_cast<int>(compute) << ", KV " << kv_type);
    Group group("tests/golden/models/" + name, tp, compute, kv_type);
    const std::vector<EngineRequest> requests = Requests(group.vocab());
    std::vector<std::vector<EngineRequest>> one_by_one;
    for (const EngineRequest& request : requests) one_by_one.push_back({request});

    SchedulerConfig config;
    config.pages = {kPages, kPages};
    config.window = group.window;
    config.max_context = 200;
    std::vector<Answer> alone;
    for (const auto& one : one_by_one) alone.push_back(group.Run(config, {one}).at(0));
    const auto check = [&](const std::vector<Answer>& got, const char* what) {
      ASSERT_EQ(got.size(), alone.size()) << what;
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(std::ssize(alone[i].tokens), kMaxTokens);
        EXPECT_TRUE(SameBits(got[i], alone[i])) << what << ": request " << i + 1;
      }
    };

    config.prefix_cache = true;
    const std::vector<Answer> found = group.Run(config, one_by_one);
    check(found, "one after the other");
    EXPECT_EQ(found[0].cached, 0);
    for (size_t i = 1; i < found.size(); ++i) EXPECT_GE(found[i].cached, 16) << i + 1;
    EXPECT_EQ(found[1].cached, 64);  // of 80: the last token is computed
    EXPECT_EQ(found[7].cached, 80);

    config.max_step_tokens = 37;
    config.max_in_flight = 2;
    check(group.Run(config, {requests}), "side by side");
    EXPECT_GT(group.stats.prefix_hit_tokens, 0u);

    // Pools for one of them and a little more; batch work that gives way, and then finds again
    // what it had computed.
    config.pages = {std::max(PagesSpanned(config.window) + 4, 9), 11};
    std::vector<std::vector<EngineRequest>> batch_first = {{}, {}};
    for (EngineRequest request : requests) {
      const bool batch = request.sequence.id.value <= 4;
      request.priority = batch ? Priority::kBatch : Priority::kInteractive;
      batch_first[batch ? 0 : 1].push_back(std::move(request));
    }
    check(group.Run(config, batch_first, 7), "in small pools");
    EXPECT_GT(group.stats.preemptions, 0u);
    EXPECT_LT(group.stats.recomputed_tokens, 16 * group.stats.preemptions);
    EXPECT_GT(group.stats.prefix_evicted_pages, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PrefixCacheForwardTest,
                         Combine(ValuesIn(GoldenNames()), Values(1, 2)), [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_tp" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace lapidary
