#include "tests/worker/engine_harness.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "engine/plan_codec.h"
#include "model/shard_plan.h"

namespace lapidary {
namespace {

constexpr int32_t kMostTokens = 512;   // of a step
constexpr int32_t kMostRunning = 256;  // sequences
constexpr int32_t kMostPages = 4096;   // of a family

void Note(std::vector<EngineEvent> events, std::map<uint64_t, EngineAnswer>* answers,
          absl::Status* failed) {
  for (EngineEvent& event : events) {
    EngineAnswer& answer = (*answers)[event.id.value];
    for (ScoredToken& token : event.tokens) answer.tokens.push_back(std::move(token));
    for (ScoredToken& scored : event.prompt_scored) {
      answer.prompt_scored.push_back(std::move(scored));
    }
    answer.cached_tokens = std::max(answer.cached_tokens, event.cached_tokens);
    if (event.finish != FinishReason::kNone) answer.finish = event.finish;
    if (event.finish == FinishReason::kError && failed->ok()) *failed = event.error;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineHarness>> EngineHarness::Create(const Checkpoint& checkpoint,
                                                                     int ranks,
                                                                     RunnerOptions options) {
  std::unique_ptr<EngineHarness> harness(new EngineHarness);
  const ModelSpec& spec = checkpoint.spec();
  ASSIGN_OR_RETURN(const ShardPlan shards, PlanShards(spec, ranks));
  harness->vocab_ = spec.vocab;
  for (const LayerSpec& layer : spec.layers) {
    harness->window_ = std::max(harness->window_, layer.window);
  }
  options.max_step_tokens = kMostTokens;
  options.max_running = kMostRunning;
  options.max_logits_rows = kMostRunning;
  options.max_context = kMaxContext;
  harness->comms_ = CreateInprocCommunicators(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    Communicator& comm = *harness->comms_[rank];
    ASSIGN_OR_RETURN(auto runner, ModelRunner::Load(checkpoint, shards.ranks[rank], options, comm,
                                                    [](int64_t, int64_t) {}));
    std::array<int32_t, kKvFamilies> pages = {0, 0};
    for (int f = 0; f < kKvFamilies; ++f) {
      harness->has_family_[f] = runner->page_bytes(static_cast<KvFamily>(f)) > 0;
      if (harness->has_family_[f]) pages[f] = kMostPages;
    }
    RETURN_IF_ERROR(runner->AllocateKv(pages));
    ASSIGN_OR_RETURN(harness->samplers_.emplace_back(), runner->CreateSampler(comm, spec.vocab));
    harness->runners_.push_back(std::move(runner));
  }
  return harness;
}

absl::StatusOr<std::map<uint64_t, EngineAnswer>> EngineHarness::Run(
    const EngineSettings& settings, std::vector<EngineRequest> requests) {
  SchedulerConfig config;
  ExecutorConfig executor_config;
  for (int f = 0; f < kKvFamilies; ++f) {
    config.pages[f] = executor_config.pages[f] = has_family_[f] ? settings.pages[f] : 0;
  }
  config.window = window_;
  config.max_context = kMaxContext;
  config.max_running = settings.max_running;
  config.max_step_tokens = settings.max_step_tokens;
  config.max_in_flight = settings.max_in_flight;
  config.prefix_cache = settings.prefix_cache;
  executor_config.max_logits_rows = kMostRunning;
  executor_config.vocab = vocab_;

  const std::unique_ptr<Scheduler> scheduler = Scheduler::Create(config);
  std::vector<std::unique_ptr<Executor>> executors;
  for (size_t rank = 0; rank < runners_.size(); ++rank) {
    executors.push_back(
        std::make_unique<Executor>(*runners_[rank], *samplers_[rank], executor_config));
  }
  std::stable_sort(requests.begin(), requests.end(),
                   [](const auto& a, const auto& b) { return a.submit_time < b.submit_time; });
  size_t submitted = 0;
  double now = 0;
  std::map<uint64_t, EngineAnswer> answers;
  absl::Status failed;
  int in_flight = 0;
  while (failed.ok() && (in_flight > 0 || !scheduler->idle() || submitted < requests.size())) {
    now += 1;
    for (; submitted < requests.size() && requests[submitted].submit_time <= now; ++submitted) {
      RETURN_IF_ERROR(scheduler->Submit(std::move(requests[submitted]), now));
    }
    if (const std::optional<StepPlan> plan = scheduler->Plan(now); plan.has_value()) {
      const std::string bytes = EncodePlan(*plan);  // as the other ranks get it
      for (const auto& executor : executors) {
        ASSIGN_OR_RETURN(const StepPlan received, DecodePlan(bytes));
        RETURN_IF_ERROR(executor->Submit(received));
      }
      if (++in_flight < settings.max_in_flight) continue;
    }
    if (in_flight == 0) {
      Note(scheduler->TakeEvents(), &answers, &failed);
      if (scheduler->has_work() && failed.ok()) return absl::InternalError("the engine is stuck");
      continue;
    }
    std::optional<StepResult> first;
    for (const auto& executor : executors) {
      ASSIGN_OR_RETURN(StepResult result, executor->Await());
      if (!first.has_value()) first = std::move(result);
    }
    --in_flight;
    Note(scheduler->Complete(*first, now), &answers, &failed);
  }
  RETURN_IF_ERROR(failed);
  stats_ = scheduler->stats();
  return answers;
}

}  // namespace lapidary
