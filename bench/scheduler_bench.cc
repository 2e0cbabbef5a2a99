// What the scheduler costs: one Plan() and Complete() with so many running requests. A full batch
// of decode rows; with the queue full as well, so that each step looks ahead for its head; and with
// a small pool, so that requests are preempted.
#include <benchmark/benchmark.h>

#include <deque>
#include <memory>
#include <random>
#include <string>

#include "common/base/check.h"
#include "engine/scheduler.h"

namespace lapidary {
namespace {

// Keeps a scheduler at its load: what ends comes anew.
class Load {
 public:
  Load(int running, int waiting, int pages_per_request, int tenants)
      : random_(1), tenants_(tenants) {
    SchedulerConfig config;
    config.window = 512;
    config.pages = {running * 36, running * pages_per_request};
    config.max_context = 4096;
    config.max_running = running;
    config.max_step_tokens = 2 * running;
    config.max_in_flight = 2;
    config.max_queued = 2 * waiting + running;
    scheduler_ = Scheduler::Create(config);
    for (int i = 0; i < running + waiting; ++i) Submit();
    for (int i = 0; i < 2000; ++i) Step();  // until prompts and decodes are mixed as they will be
  }

  void Step() {
    while (in_flight_.size() < 2) {
      std::optional<StepPlan> plan = scheduler_->Plan(now_ += 0.01);
      if (!plan) break;
      rows_ += static_cast<int64_t>(plan->rows.size());
      in_flight_.push_back(*std::move(plan));
    }
    LAPIDARY_CHECK(!in_flight_.empty());
    StepResult result;
    result.step = in_flight_.front().step;
    result.forward_seconds = 0.01;
    result.rows.resize(in_flight_.front().rows.size());
    for (size_t i = 0; i < result.rows.size(); ++i) {
      const PlanRow& row = in_flight_.front().rows[i];
      result.rows[i].seq = row.seq;
      if (row.samples) result.rows[i].sampled.resize(1);
    }
    in_flight_.pop_front();
    int ended = 0;
    for (const EngineEvent& event : scheduler_->Complete(result, now_)) {
      ended += event.finish != FinishReason::kNone;
    }
    for (; ended > 0; --ended) Submit();
  }

  int64_t rows() const { return rows_; }
  EngineStats stats() const { return scheduler_->stats(); }

 private:
  void Submit() {
    EngineRequest request;
    NewSequence& sequence = request.sequence;
    sequence.id = RequestId{next_id_++};
    sequence.prompt_len = 64 + static_cast<int32_t>(random_() % 512);
    sequence.tokens.resize(sequence.prompt_len);
    sequence.sampling.max_tokens = 128 + static_cast<int32_t>(random_() % 512);
    sequence.sampling.stop_ids = {1, 106};
    request.tenant = std::to_string(random_() % tenants_);
    request.deadline = now_ + 1e6;
    LAPIDARY_CHECK(scheduler_->Submit(std::move(request), now_).ok());
  }

  std::mt19937 random_;
  const int tenants_;
  std::unique_ptr<Scheduler> scheduler_;
  std::deque<StepPlan> in_flight_;
  uint64_t next_id_ = 1;
  int64_t rows_ = 0;
  double now_ = 0;
};

void Run(benchmark::State& state, int waiting, int pages_per_request) {
  Load load(static_cast<int>(state.range(0)), waiting, pages_per_request, 20);
  const EngineStats before = load.stats();
  const int64_t rows = load.rows();
  for ([[maybe_unused]] auto _ : state) load.Step();
  const EngineStats after = load.stats();
  const auto steps = static_cast<double>(state.iterations());
  state.counters["rows"] = static_cast<double>(load.rows() - rows) / steps;
  state.counters["preempted"] = static_cast<double>(after.preemptions - before.preemptions) / steps;
}

// 80 pages are 1,280 tokens, more than anybody needs: only places are scarce.
void BM_Step(benchmark::State& state) { Run(state, 0, 80); }
void BM_StepWithQueue(benchmark::State& state) { Run(state, 1000, 80); }
// The pages are full: every step looks ahead whether the head of the queue fits.
void BM_StepPagesFull(benchmark::State& state) { Run(state, 1000, 24); }
BENCHMARK(BM_Step)->Arg(16)->Arg(256)->Arg(1024)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_StepWithQueue)->Arg(16)->Arg(256)->Arg(1024)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_StepPagesFull)->Arg(16)->Arg(256)->Arg(1024)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
