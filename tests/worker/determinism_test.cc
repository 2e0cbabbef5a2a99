// docs/determinism.md, as tests: a request's tokens and log-probabilities are the same bytes
// whatever runs beside it, however its prompt is cut, one step or two in flight, with the prefix
// cache missed and hit, and after preemption.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/worker/engine_harness.h"
#include "tests/worker/golden_model.h"
#include "tests/worker/quantized_toy.h"

namespace lapidary {
namespace {

constexpr int kProbes = 4;

struct Arithmetic {
  const char* name;
  const char* model;  // of tests/golden/models, or "toy": quantised blocks, with experts
  ComputeType compute;
  int ranks;
  const char* kv_type = "auto";
  const char* kv_format = "auto";
};

void PrintTo(const Arithmetic& a, std::ostream* out) { *out << a.name; }

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Everything a request brought, to the bit.
std::string Bytes(const EngineAnswer& answer) {
  std::string text;
  const auto append = [&text](const std::vector<ScoredToken>& tokens) {
    for (const ScoredToken& token : tokens) {
      absl::StrAppend(&text, token.id, ":", absl::Hex(Bits(token.logprob)));
      for (const TokenLogprob& top : token.top) {
        absl::StrAppend(&text, ",", top.id, ":", absl::Hex(Bits(top.logprob)));
      }
      absl::StrAppend(&text, " ");
    }
  };
  append(answer.prompt_scored);
  absl::StrAppend(&text, "| ");
  append(answer.tokens);
  return text;
}

EngineRequest Request(uint64_t id, int prompt, int max_tokens, int vocab, std::mt19937& rng) {
  EngineRequest request;
  NewSequence& sequence = request.sequence;
  sequence.id = RequestId{id};
  sequence.tokens.push_back(2);
  while (static_cast<int>(sequence.tokens.size()) < prompt) {
    sequence.tokens.push_back(static_cast<TokenId>(3 + rng() % (vocab - 3)));
  }
  sequence.prompt_len = prompt;
  sequence.sampling.max_tokens = max_tokens;
  sequence.sampling.temperature = 0;
  sequence.sampling.logprobs = 3;
  sequence.sampling.seed = 17 * id;
  return request;
}

// The requests that are watched: longer than the windows of all these models and than small chunks,
// greedy and sampled, with penalties, with log-probabilities of the prompt.
std::vector<EngineRequest> Probes(int vocab) {
  std::mt19937 rng(5);
  std::vector<EngineRequest> probes;
  const int prompts[kProbes] = {3, 150, 67, 90};
  for (int i = 0; i < kProbes; ++i) {
    probes.push_back(Request(1 + i, prompts[i], 24, vocab, rng));
    SamplingParams& sampling = probes.back().sequence.sampling;
    if (i % 2 == 1) sampling.temperature = 0.8f;
    if (i == 1) sampling.top_p = 0.9f;
    if (i == 2) sampling.repetition_penalty = 1.3f;
    if (i == 3) sampling.prompt_logprobs = 2;
  }
  return probes;
}

// The probes among others, which come before, between and after them.
std::vector<EngineRequest> Among(const std::vector<EngineRequest>& probes, int others, int vocab) {
  std::mt19937 rng(others);
  std::vector<EngineRequest> all;
  for (int i = 0; i < others; ++i) {
    all.push_back(Request(100 + i, 1 + static_cast<int>(rng() % 60),
                          1 + static_cast<int>(rng() % 40), vocab, rng));
    if (i % 2 == 0) all.back().sequence.sampling.temperature = 1;
  }
  for (size_t p = 0; p < probes.size(); ++p) {
    all.insert(all.begin() + std::min(all.size(), p * (others / 4 + 1)), probes[p]);
  }
  return all;
}

class DeterminismTest : public testing::TestWithParam<Arithmetic> {
 protected:
  void SetUp() override {
    const Arithmetic& arithmetic = GetParam();
    if (std::string(arithmetic.model) == "toy") {
      checkpoint_ = QuantizedToy(WidenedToy(ToyB(), 16));
    } else {
      auto opened = Checkpoint::Open(absl::StrCat("tests/golden/models/", arithmetic.model));
      ASSERT_TRUE(opened.ok()) << opened.status();
      checkpoint_ = *std::move(opened);
    }
    RunnerOptions options;
    options.compute = arithmetic.compute;
    options.threads = 1;
    options.kv_type = arithmetic.kv_type;
    options.kv_format = arithmetic.kv_format;
    auto group = EngineHarness::Create(*checkpoint_, arithmetic.ranks, options);
    ASSERT_TRUE(group.ok()) << group.status();
    group_ = *std::move(group);
    vocab_ = static_cast<int>(checkpoint_->spec().vocab);
    probes_ = Probes(vocab_);
    for (const EngineRequest& probe : probes_) {
      const auto alone = group_->Run({}, {probe});
      ASSERT_TRUE(alone.ok()) << alone.status();
      const EngineAnswer& answer = alone->at(probe.sequence.id.value);
      ASSERT_EQ(answer.tokens.size(), 24u);
      alone_[probe.sequence.id.value] = Bytes(answer);
    }
  }

  // Runs the probes among others; each must bring what it brings alone.
  void ExpectTheSame(const EngineSettings& settings, int others, const std::string& how) {
    const auto answers = group_->Run(settings, Among(probes_, others, vocab_));
    ASSERT_TRUE(answers.ok()) << how << ": " << answers.status();
    for (const EngineRequest& probe : probes_) {
      EXPECT_EQ(Bytes(answers->at(probe.sequence.id.value)), alone_[probe.sequence.id.value])
          << how << ": request " << probe.sequence.id.value;
    }
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<EngineHarness> group_;
  int vocab_ = 0;
  std::vector<EngineRequest> probes_;
  std::map<uint64_t, std::string> alone_;
};

TEST_P(DeterminismTest, WhateverRunsBeside) {
  for (const int others : {0, 1, 14, 60, 252}) {
    for (const int in_flight : {1, 2}) {
      EngineSettings settings;
      settings.max_in_flight = in_flight;
      ExpectTheSame(settings, others, absl::StrCat(others, " others, ", in_flight, " in flight"));
    }
  }
}

TEST_P(DeterminismTest, HoweverThePromptIsCut) {
  for (const int budget : {1, 2, 7, 16, 33, 100, 512}) {
    EngineSettings settings;
    settings.max_step_tokens = budget;
    settings.max_in_flight = 1 + budget % 2;
    ExpectTheSame(settings, 3, absl::StrCat("steps of ", budget, " tokens"));
  }
}

TEST_P(DeterminismTest, AfterPreemption) {
  // The probes are batch work and fill the pools; interactive requests come in the middle of their
  // answers and take the pages.
  uint64_t preemptions = 0;
  for (const int in_flight : {1, 2}) {
    EngineSettings settings;
    settings.pages = {24, 24};
    settings.max_in_flight = in_flight;
    std::vector<EngineRequest> requests = Among({}, 12, vocab_);
    for (EngineRequest& request : requests) request.submit_time = 8;
    for (const EngineRequest& probe : probes_) {
      requests.push_back(probe);
      requests.back().priority = Priority::kBatch;
    }
    const auto answers = group_->Run(settings, requests);
    ASSERT_TRUE(answers.ok()) << answers.status();
    for (const EngineRequest& probe : probes_) {
      EXPECT_EQ(Bytes(answers->at(probe.sequence.id.value)), alone_[probe.sequence.id.value])
          << in_flight << " in flight, request " << probe.sequence.id.value;
    }
    preemptions += group_->stats().preemptions;
  }
  EXPECT_GT(preemptions, 0u);
}

TEST_P(DeterminismTest, PrefixCacheMissedAndHit) {
  EngineSettings settings;
  settings.prefix_cache = true;
  settings.max_running = 4;
  // The same prompts again and again under other ids; only the ids of the second half are watched.
  std::vector<EngineRequest> requests;
  for (uint64_t round = 0; round < 3; ++round) {
    for (const EngineRequest& probe : probes_) {
      requests.push_back(probe);
      requests.back().sequence.id = RequestId{probe.sequence.id.value + 10 * round};
    }
  }
  const auto answers = group_->Run(settings, requests);
  ASSERT_TRUE(answers.ok()) << answers.status();
  int64_t hits = 0;
  for (uint64_t round = 0; round < 3; ++round) {
    for (const EngineRequest& probe : probes_) {
      const EngineAnswer& answer = answers->at(probe.sequence.id.value + 10 * round);
      EXPECT_EQ(Bytes(answer), alone_[probe.sequence.id.value])
          << "round " << round << ", request " << probe.sequence.id.value << ", "
          << answer.cached_tokens << " tokens cached";
      hits += answer.cached_tokens;
    }
  }
  EXPECT_GT(hits, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Arithmetics, DeterminismTest,
    testing::Values(Arithmetic{"dense_bf16", "dense-gpu", ComputeType::kBf16, 1},
                    Arithmetic{"dense_fp32_tp2", "dense-awkward", ComputeType::kFp32, 2},
                    Arithmetic{"moe_bf16", "moe-gpu", ComputeType::kBf16, 1},
                    Arithmetic{"moe_bf16_tp2", "moe-awkward", ComputeType::kBf16, 2},
                    Arithmetic{"ple_bf16", "ple-gpu", ComputeType::kBf16, 1},
                    Arithmetic{"quantised_int8", "toy", ComputeType::kInt8, 1},
                    Arithmetic{"quantised_int8_tp2", "toy", ComputeType::kInt8, 2},
                    Arithmetic{"dense_split", "dense-gpu", ComputeType::kBf16, 1, "auto", "split"},
                    Arithmetic{"dense_kv8", "dense-gpu", ComputeType::kBf16, 1, "int8", "folded"},
                    Arithmetic{"moe_kv8_tp2", "moe-gpu", ComputeType::kBf16, 2, "int8", "single"},
                    Arithmetic{"ple_kv8", "ple-gpu", ComputeType::kBf16, 1, "int8"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lapidary
