#include "worker/executor.h"

#include <thread>

#include "absl/strings/str_format.h"
#include "engine/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/fake_model.h"

namespace lapidary {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;

constexpr std::array<int32_t, kKvFamilies> kPages = {40, 24};

// One rank with the fake model.
struct Rank {
  Rank(Communicator& comm, int max_logits_rows = 64)
      : runner(comm, kPages, max_logits_rows),
        sampler(comm),
        executor(runner, sampler,
                 ExecutorConfig{.epoch = 1,
                                .pages = kPages,
                                .max_logits_rows = max_logits_rows,
                                .vocab = kFakeVocab}) {}
  FakeModelRunner runner;
  FakeSampler sampler;
  Executor executor;
};

EngineRequest Request(uint64_t id, std::vector<TokenId> prompt, int max_tokens) {
  EngineRequest request;
  request.sequence.id = RequestId{id};
  request.sequence.prompt_len = static_cast<int32_t>(prompt.size());
  request.sequence.tokens = std::move(prompt);
  request.sequence.sampling.temperature = 0;
  request.sequence.sampling.max_tokens = max_tokens;
  return request;
}

SchedulerConfig Config(int max_step_tokens) {
  SchedulerConfig config;
  config.pages = kPages;
  config.window = kFakeWindow;
  config.max_context = 400;
  config.max_running = 8;
  config.max_step_tokens = max_step_tokens;
  return config;
}

class ExecutorRanksTest : public testing::TestWithParam<int> {};

// Prompts of many lengths, chunked, mixed with decoding, preempted when pages run short: every
// request gets what it gets alone, and every rank the same.
TEST_P(ExecutorRanksTest, MixedRequestsGetTheirOwnTokens) {
  const int size = GetParam();
  auto comms = CreateInprocCommunicators(size);
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<Rank>(*comms[r], 5));

  const auto scheduler = Scheduler::Create(Config(24));
  constexpr int kOutput = 100;
  const std::vector<int> lengths = {1, 2, 15, 16, 17, 33, 70, 150, 200, 5};
  for (size_t i = 0; i < lengths.size(); ++i) {
    ASSERT_TRUE(scheduler->Submit(Request(i, Prompt(i, lengths[i]), kOutput), 0).ok());
  }
  std::vector<std::vector<TokenId>> got(lengths.size());
  while (!scheduler->idle()) {
    const std::optional<StepPlan> plan = scheduler->Plan(0);
    ASSERT_TRUE(plan.has_value());
    std::vector<absl::StatusOr<StepResult>> results(size);
    std::vector<std::thread> threads;
    for (int r = 0; r < size; ++r) {
      threads.emplace_back([&, r] { results[r] = ranks[r]->executor.Execute(*plan); });
    }
    for (std::thread& t : threads) t.join();
    for (int r = 0; r < size; ++r) {
      ASSERT_TRUE(results[r].ok()) << results[r].status();
      ASSERT_EQ(results[r]->rows.size(), plan->rows.size());
      for (size_t i = 0; i < plan->rows.size(); ++i) {
        const StepResultRow& row = results[r]->rows[i];
        ASSERT_EQ(row.sampled.size(), results[0]->rows[i].sampled.size());
        if (row.sampled.empty()) continue;
        ASSERT_EQ(row.sampled[0].id, results[0]->rows[i].sampled[0].id) << "rank " << r;
      }
    }
    for (const EngineEvent& event : scheduler->Complete(*results[0], 0)) {
      for (const ScoredToken& t : event.tokens) got[event.id.value].push_back(t.id);
    }
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    EXPECT_THAT(got[i], ElementsAreArray(FakeReference::Continue(Prompt(i, lengths[i]), kOutput)))
        << "request " << i;
  }
  EXPECT_GT(scheduler->stats().preemptions, 0u) << "the pools were meant to be too small";
  EXPECT_LT(ranks[0]->executor.sequences(), lengths.size());  // the last await the next plan
}

INSTANTIATE_TEST_SUITE_P(Ranks, ExecutorRanksTest, testing::Values(1, 2, 3));

// Prompt logprobs want more rows of logits than the buffer holds.
TEST(Executor, PromptScoresComeInSlices) {
  auto comms = CreateInprocCommunicators(1);
  Rank rank(*comms[0], 4);
  const auto scheduler = Scheduler::Create(Config(16));
  const std::vector<TokenId> prompt = Prompt(3, 37);
  EngineRequest request = Request(1, prompt, 1);
  request.sequence.sampling.prompt_logprobs = 0;
  ASSERT_TRUE(scheduler->Submit(std::move(request), 0).ok());
  std::vector<ScoredToken> scored;
  while (!scheduler->idle()) {
    const std::optional<StepPlan> plan = scheduler->Plan(0);
    ASSERT_TRUE(plan.has_value());
    const absl::StatusOr<StepResult> result = rank.executor.Execute(*plan);
    ASSERT_TRUE(result.ok()) << result.status();
    for (const EngineEvent& event : scheduler->Complete(*result, 0)) {
      scored.insert(scored.end(), event.prompt_scored.begin(), event.prompt_scored.end());
    }
  }
  ASSERT_EQ(scored.size(), prompt.size() - 1);
  for (size_t p = 1; p < prompt.size(); ++p) {
    const std::vector<TokenId> context(prompt.begin(), prompt.begin() + p);
    EXPECT_EQ(scored[p - 1].id, prompt[p]);
    EXPECT_EQ(scored[p - 1].logprob,
              FakeReference::Logit(FakeReference::ContextHash(context), prompt[p]))
        << "position " << p;
  }
}

// A plan for one sequence of `tokens` in a single chunk.
StepPlan OneChunk(std::vector<TokenId> tokens, int32_t prompt_len) {
  StepPlan plan;
  plan.epoch = 1;
  plan.step = 1;
  NewSequence added;
  added.id = RequestId{7};
  added.prompt_len = prompt_len;
  PlanRow row;
  row.seq = added.id;
  row.len = static_cast<int32_t>(tokens.size());
  row.logits = LogitsMask::kLast;
  row.samples = true;
  for (int f = 0; f < kKvFamilies; ++f) {
    for (int p = 0; p * kPageTokens < row.len; ++p) row.pages_added[f].push_back(PageId{p});
  }
  added.tokens = std::move(tokens);
  plan.added.push_back(std::move(added));
  plan.rows.push_back(std::move(row));
  return plan;
}

TEST(Executor, ContradictionsAreErrorsNotCrashes) {
  struct Case {
    const char* want;
    std::function<void(StepPlan&)> spoil;
  };
  const std::vector<Case> cases = {
      {"epoch 2", [](StepPlan& p) { p.epoch = 2; }},
      {"does not know", [](StepPlan& p) { p.rows[0].seq = RequestId{8}; }},
      {"does not know", [](StepPlan& p) { p.finished.push_back(RequestId{9}); }},
      {"which this rank knows", [](StepPlan& p) { p.added.push_back(p.added[0]); }},
      {"this rank has 20", [](StepPlan& p) { p.rows[0].start = 1; }},
      {"this rank has 20", [](StepPlan& p) { p.rows[0].len = 21; }},
      {"this rank has 20", [](StepPlan& p) { p.rows[0].len = 0; }},
      {"within the 20", [](StepPlan& p) { p.rows[0].len = 19; }},
      {"without logits", [](StepPlan& p) { p.rows[0].logits = LogitsMask::kNone; }},
      {"page 40 of a pool of 40", [](StepPlan& p) { p.rows[0].pages_added[0][1].value = 40; }},
      {"page -1 of", [](StepPlan& p) { p.rows[0].pages_added[1][0].value = -1; }},
      {"1 pages for 20", [](StepPlan& p) { p.rows[0].pages_added[1].pop_back(); }},
      {"token 97 of", [](StepPlan& p) { p.added[0].tokens[3] = 97; }},
      {"a prompt of 21", [](StepPlan& p) { p.added[0].prompt_len = 21; }},
      {"prefix of 21", [](StepPlan& p) { p.added[0].cached_len = 21; }},
      {"8 of them cached", [](StepPlan& p) { p.added[0].cached_len = 8; }},
  };
  for (const Case& c : cases) {
    auto comms = CreateInprocCommunicators(1);
    Rank rank(*comms[0]);
    StepPlan plan = OneChunk(Prompt(1, 20), 20);
    c.spoil(plan);
    const absl::Status status = rank.executor.Execute(plan).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << c.want;
    EXPECT_THAT(status.message(), HasSubstr(c.want));
    EXPECT_EQ(rank.runner.forwards, 0);
  }
}

// What a sampler is told: counts before the token, positions, what of the tokens is prompt.
class RecordingSampler final : public Sampler {
 public:
  void Sample(const LogitsView&, std::vector<SampleRow> sample_rows, Stream& stream,
              std::vector<SampledRow>* out) override {
    for (const SampleRow& row : sample_rows) counts.push_back(*row.counts);
    rows.insert(rows.end(), sample_rows.begin(), sample_rows.end());
    stream.Enqueue([out, sample_rows] {
      out->assign(sample_rows.size(), SampledRow{});
      for (SampledRow& row : *out) row.sampled.id = 5, row.scored.id = -1;
      for (const SampleRow& row : sample_rows) ++row.counted_in->output[5];
      return absl::OkStatus();
    });
  }
  std::vector<SampleRow> rows;
  std::vector<TokenCounts> counts;
};

TEST(Executor, SamplerIsToldCountsAndPositions) {
  auto comms = CreateInprocCommunicators(1);
  FakeModelRunner runner(*comms[0], kPages, 8);
  RecordingSampler sampler;
  Executor executor(runner, sampler,
                    ExecutorConfig{.epoch = 1, .pages = kPages, .max_logits_rows = 8, .vocab = 97});
  // Three tokens of prompt and two generated before (a resumed request).
  StepPlan plan = OneChunk({4, 4, 9, 5, 6}, 3);
  plan.added[0].choice = 2;
  plan.added[0].sampling.repetition_penalty = 1.5f;
  plan.added[0].sampling.logprobs = 3;
  ASSERT_TRUE(executor.Execute(plan).ok());
  StepPlan next;
  next.epoch = 1;
  next.step = 2;
  PlanRow row;
  row.seq = RequestId{7};
  row.start = 5;
  row.len = 1;
  row.logits = LogitsMask::kLast;
  row.samples = true;
  next.rows.push_back(row);
  ASSERT_TRUE(executor.Execute(next).ok());

  ASSERT_EQ(sampler.rows.size(), 2u);
  const SampleRow& first = sampler.rows[0];
  EXPECT_EQ(first.choice, 2u);
  EXPECT_EQ(first.position, 5);
  EXPECT_EQ(first.generated, 2);
  EXPECT_EQ(first.top_logprobs, 3);
  EXPECT_TRUE(first.wants_logprob);
  EXPECT_EQ(first.scored_token, -1);
  EXPECT_THAT(sampler.counts[0].prompt,
              testing::UnorderedElementsAre(testing::Pair(4, 2), testing::Pair(9, 1)));
  EXPECT_THAT(sampler.counts[0].output,
              testing::UnorderedElementsAre(testing::Pair(5, 1), testing::Pair(6, 1)));
  EXPECT_EQ(sampler.rows[1].position, 6);
  EXPECT_EQ(sampler.rows[1].generated, 3);
  EXPECT_THAT(sampler.counts[1].output,
              testing::UnorderedElementsAre(testing::Pair(5, 2), testing::Pair(6, 1)));
}

// A second sequence begins behind a prefix that the first one left in the pages. The sliding entry
// behind the window is page 0, which holds something else.
TEST(Executor, ACachedPrefixIsNotComputedAgain) {
  auto comms = CreateInprocCommunicators(1);
  Rank rank(*comms[0]);
  const std::vector<TokenId> prefix = Prompt(1, 48);
  StepPlan first = OneChunk(prefix, 48);
  for (int f = 0; f < kKvFamilies; ++f) {
    for (int i = 0; i < 3; ++i) first.rows[0].pages_added[f][i] = PageId{i + 4};
  }
  ASSERT_TRUE(rank.executor.Execute(first).ok());

  std::vector<TokenId> prompt = prefix;
  for (TokenId i = 0; i < 10; ++i) prompt.push_back(90 - i);
  StepPlan second = OneChunk(prompt, 58);
  second.step = 2;
  second.added[0].id = second.rows[0].seq = RequestId{8};
  second.added[0].cached_len = second.rows[0].start = 48;
  second.rows[0].len = 10;
  second.rows[0].pages_added[0] = {PageId{0}, PageId{5}, PageId{6}, PageId{9}};
  second.rows[0].pages_added[1] = {PageId{4}, PageId{5}, PageId{6}, PageId{9}};
  const absl::StatusOr<StepResult> result = rank.executor.Execute(second);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rows[0].sampled[0].id, FakeReference::Next(prompt));

  StepPlan third = second;
  third.finished = {RequestId{8}};
  third.rows[0].start = 47;  // not where the cached prefix ends
  EXPECT_THAT(rank.executor.Submit(third).message(), HasSubstr("48 of them cached"));
}

TEST(Executor, AbortedCollectiveIsReported) {
  auto comms = CreateInprocCommunicators(2);
  Rank rank(*comms[0]);
  comms[1]->Abort("rank 1 died");
  const absl::Status status = rank.executor.Execute(OneChunk(Prompt(1, 20), 20)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "rank 1 died");
}

}  // namespace
}  // namespace lapidary
