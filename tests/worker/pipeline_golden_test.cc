// One and two steps in flight on the tiny checkpoints: every family, 1 and 2 ranks, every way to
// sample. The second step embeds tokens that only the stream knows; nobody may notice.
#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/shard_plan.h"
#include "tests/worker/engine_drive.h"
#include "tests/worker/golden_model.h"

namespace lapidary {
namespace {

constexpr std::array<int32_t, kKvFamilies> kPages = {160, 160};
constexpr int kMaxStepTokens = 48;  // prompts come in chunks, beside decoding
constexpr int kMaxRunning = 16;

// All ranks of a group, with the real runner and sampler.
class Engine {
 public:
  Engine(const std::string& path, int ranks) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    const ModelSpec& spec = checkpoint_->spec();
    const absl::StatusOr<ShardPlan> plan = PlanShards(spec, ranks);
    EXPECT_TRUE(plan.ok()) << plan.status();
    comms_ = CreateInprocCommunicators(ranks);
    RunnerOptions options;
    options.compute = ComputeType::kFp32;
    options.max_step_tokens = kMaxStepTokens;
    options.max_logits_rows = 5;  // fewer than wanted: logits come in slices
    for (int r = 0; r < ranks; ++r) {
      auto runner = ModelRunner::Load(*checkpoint_, plan->ranks[r], options, *comms_[r],
                                      [](int64_t, int64_t) {});
      EXPECT_TRUE(runner.ok()) << runner.status();
      EXPECT_TRUE((*runner)->AllocateKv(kPages).ok());
      runners_.push_back(*std::move(runner));
      auto sampler = runners_[r]->CreateSampler(*comms_[r], spec.vocab);
      EXPECT_TRUE(sampler.ok()) << sampler.status();
      samplers_.push_back(*std::move(sampler));
      executors_.push_back(std::make_unique<Executor>(
          *runners_[r], *samplers_[r],
          ExecutorConfig{.epoch = 1, .pages = kPages, .max_logits_rows = 5, .vocab = spec.vocab}));
    }
  }

  EngineDrive Drive(int max_in_flight) const {
    SchedulerConfig config;
    config.pages = kPages;
    for (const LayerSpec& layer : checkpoint_->spec().layers) {
      config.window = std::max(config.window, layer.window);
    }
    config.max_context = 512;
    config.max_running = kMaxRunning;
    config.max_step_tokens = kMaxStepTokens;
    config.max_in_flight = max_in_flight;
    std::vector<Executor*> executors;
    for (const auto& executor : executors_) executors.push_back(executor.get());
    return EngineDrive(config, std::move(executors), /*followers_lag=*/max_in_flight == 2);
  }

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<ModelRunner>> runners_;
  std::vector<std::unique_ptr<Sampler>> samplers_;
  std::vector<std::unique_ptr<Executor>> executors_;
};

// Every way to sample, over the recorded prompts. The first of each prompt is plainly greedy.
std::vector<EngineRequest> Requests(const GoldenModel& model) {
  std::vector<EngineRequest> all;
  const auto add = [&](const GoldenCase& c, auto change) {
    EngineRequest request;
    request.sequence.id = RequestId{all.size()};
    request.sequence.tokens = c.prompt;
    request.sequence.prompt_len = static_cast<int32_t>(c.prompt.size());
    SamplingParams& sampling = request.sequence.sampling;
    sampling.temperature = 0;
    sampling.max_tokens = static_cast<int32_t>(c.continuation.size());
    sampling.logprobs = 2;
    sampling.seed = 1000 + all.size();
    change(sampling);
    all.push_back(std::move(request));
  };
  for (const GoldenCase& c : model.cases) {
    add(c, [](SamplingParams&) {});
    add(c, [](SamplingParams& p) { p.temperature = 1, p.top_k = 40, p.top_p = 0.95f; });
    add(c, [](SamplingParams& p) { p.temperature = 1.5f, p.top_p = 0.9f; });  // by threshold
    add(c, [](SamplingParams& p) {  // counts must be those of the very token before
      p.temperature = 0.7f, p.repetition_penalty = 1.3f, p.presence_penalty = 0.5f;
      p.frequency_penalty = 0.4f;
    });
    add(c, [](SamplingParams& p) { p.repetition_penalty = 2, p.prompt_logprobs = 1; });
    add(c, [&](SamplingParams& p) {  // stops, which the step behind does not know yet
      p.stop_ids = {c.continuation[c.continuation.size() / 2]};
      p.min_tokens = 2;
    });
  }
  return all;
}

void ExpectSame(const std::vector<ScoredToken>& a, const std::vector<ScoredToken>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].id, b[i].id) << "token " << i;
    ASSERT_EQ(a[i].logprob, b[i].logprob) << "token " << i;
    ASSERT_EQ(a[i].top.size(), b[i].top.size());
    for (size_t k = 0; k < a[i].top.size(); ++k) {
      ASSERT_EQ(a[i].top[k].id, b[i].top[k].id);
      ASSERT_EQ(a[i].top[k].logprob, b[i].top[k].logprob);
    }
  }
}

class PipelineGoldenTest : public testing::TestWithParam<std::tuple<std::string, int>> {};

TEST_P(PipelineGoldenTest, TwoInFlightGiveTheSameBytesAsOne) {
  const auto& [name, ranks] = GetParam();
  const absl::StatusOr<GoldenModel> model = ReadGolden(name);
  ASSERT_TRUE(model.ok()) << model.status();
  const Engine engine(model->path, ranks);
  const std::vector<EngineRequest> requests = Requests(*model);

  EngineDrive one = engine.Drive(1);
  for (const EngineRequest& r : requests) ASSERT_TRUE(one.scheduler().Submit(r, 0).ok());
  absl::Status ran = one.Run();
  ASSERT_TRUE(ran.ok()) << ran;
  // The sequences of the last steps are still known to the ranks: other ids.
  constexpr uint64_t kSecond = 100;
  EngineDrive two = engine.Drive(2);
  for (EngineRequest r : requests) {
    r.sequence.id.value += kSecond;
    ASSERT_TRUE(two.scheduler().Submit(std::move(r), 0).ok());
  }
  ran = two.Run();
  ASSERT_TRUE(ran.ok()) << ran;

  EXPECT_EQ(one.sampled_rows(), 0);
  EXPECT_GT(two.sampled_rows(), static_cast<int>(requests.size()));
  int stopped = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE("request " + std::to_string(i));
    const EngineDrive::Answer &a = one.answers().at(i), &b = two.answers().at(i + kSecond);
    ExpectSame(a.tokens, b.tokens);
    ExpectSame(a.prompt_scored, b.prompt_scored);
    EXPECT_EQ(a.finish, b.finish);
    EXPECT_EQ(b.finishes, 1);
    stopped += b.finish == FinishReason::kStop;
    if (i % 6 == 0) {
      EXPECT_THAT(b.ids(), testing::ElementsAreArray(model->cases[i / 6].continuation));
    }
  }
  EXPECT_GT(stopped, 0);
}

// A cancel between any two calls: the others do not notice, the cancelled one has a part of what it
// would have had.
TEST_P(PipelineGoldenTest, ACancelTouchesNobodyElse) {
  const auto& [name, ranks] = GetParam();
  const absl::StatusOr<GoldenModel> model = ReadGolden(name);
  ASSERT_TRUE(model.ok()) << model.status();
  const Engine engine(model->path, ranks);
  const std::vector<TokenId>& greedy = model->cases[0].continuation;
  uint64_t next_id = 0;
  for (int calls = 0; calls < 12; ++calls) {
    EngineDrive drive = engine.Drive(2);
    const uint64_t first = next_id;
    for (int i = 0; i < 2; ++i) {
      EngineRequest request = Requests(*model)[0];
      request.sequence.id.value = next_id++;
      request.sequence.sampling.max_tokens = 8;
      ASSERT_TRUE(drive.scheduler().Submit(std::move(request), 0).ok());
    }
    for (int call = 0; call < calls; ++call) {  // submit, submit, complete, submit, complete ...
      absl::Status done;
      if (drive.in_flight() < 2 && call % 2 == 1) done = drive.Submit().status();
      if (drive.in_flight() > 0 && call % 2 == 0) done = drive.Complete();
      if (drive.in_flight() == 0) done.Update(drive.Submit().status());
      ASSERT_TRUE(done.ok()) << done;
    }
    drive.scheduler().Cancel(RequestId{first});
    const absl::Status ran = drive.Run();
    ASSERT_TRUE(ran.ok()) << ran;
    const std::vector<TokenId> ids = drive.answers().at(first).ids();
    ASSERT_LE(ids.size(), 8u);
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), greedy.begin()));
    EXPECT_THAT(drive.answers().at(first + 1).ids(),
                testing::ElementsAreArray(greedy.begin(), greedy.begin() + 8));
    EXPECT_EQ(drive.answers().at(first).finishes, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PipelineGoldenTest,
                         testing::Combine(testing::Values("dense-awkward", "moe-gpu", "ple-awkward",
                                                          "unified-gpu"),
                                          testing::Values(1, 2)),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_tp" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace lapidary
