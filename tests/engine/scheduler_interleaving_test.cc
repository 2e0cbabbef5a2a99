// Every order of events in small cases: with two steps in flight a request may end, be cancelled,
// paused or preempted between any two of them. A depth-first search over all orders of plans,
// completions and the case's own events; each path is run from the beginning against the shadow of
// the ranks, to the end.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>

#include "engine/scheduler.h"
#include "tests/engine/shadow_ranks.h"

namespace lapidary {
namespace {

// What happens once in a case, besides planning and completing. `after` is the event that must have
// happened before, -1 for none.
struct Event {
  enum Kind { kSubmit, kCancel, kPause, kResume, kDeadline } kind;
  uint64_t id;
  int after = -1;
};

struct Case {
  std::string name;
  SchedulerConfig config;
  std::map<uint64_t, EngineRequest> requests;
  std::vector<Event> events;
  // Before the search: all requests submitted, and so many steps of one plan and one completion.
  int lead_in = 0;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

EngineRequest Request(uint64_t id, int32_t prompt_len, int32_t max_tokens, int32_t stop_after = 0,
                      bool needs_host_mask = false) {
  EngineRequest request;
  NewSequence& sequence = request.sequence;
  sequence.id = RequestId{id};
  sequence.prompt_len = prompt_len;
  for (int32_t i = 0; i < prompt_len; ++i) sequence.tokens.push_back(TokenAt(sequence.id, i));
  sequence.sampling.max_tokens = max_tokens;
  sequence.needs_host_mask = needs_host_mask;
  if (stop_after > 0) {
    sequence.sampling.stop_ids = {TokenAt(sequence.id, prompt_len + stop_after - 1)};
  }
  return request;
}

// One run from the beginning. Choices: 0 plan, 1 complete, 2 + i event i.
class Path {
 public:
  explicit Path(const Case& c)
      : case_(c), scheduler_(Scheduler::Create(c.config)), ranks_(c.config) {
    if (c.lead_in == 0) return;
    for (size_t i = 0; i < c.events.size(); ++i) {
      if (c.events[i].kind == Event::kSubmit) Happen(static_cast<int>(i));
    }
    for (int i = 0; i < c.lead_in; ++i) Take(0), Take(1);
  }

  std::vector<int> Choices() const {
    std::vector<int> choices;
    // A plan of nothing changes nothing until something else has happened.
    if (!planned_nothing_ && static_cast<int>(ranks_.in_flight()) < case_.config.max_in_flight) {
      choices.push_back(0);
    }
    if (ranks_.in_flight() > 0) choices.push_back(1);
    for (size_t i = 0; i < case_.events.size(); ++i) {
      const int after = case_.events[i].after;
      if (!(done_ >> i & 1) && (after < 0 || (done_ >> after & 1))) {
        choices.push_back(2 + static_cast<int>(i));
      }
    }
    return choices;
  }

  void Take(int choice) {
    const bool plans = choice == 0;
    if (plans) Plan();
    if (choice == 1) TakeEvents(scheduler_->Complete(ranks_.Complete(), now_));
    if (choice >= 2) Happen(choice - 2);
    if (!plans) planned_nothing_ = false;
    const EngineStats stats = scheduler_->stats();
    for (int f = 0; f < kKvFamilies; ++f) ASSERT_LE(stats.pages_used[f], stats.pages_total[f]);
  }

  // All that can happen has happened: everyone has ended, and nothing is held.
  void CheckEnd() {
    TakeEvents(scheduler_->TakeEvents());
    ASSERT_TRUE(scheduler_->idle());
    for (const auto& entry : clients_) entry.second.CheckEnd();
    const EngineStats stats = scheduler_->stats();
    for (int f = 0; f < kKvFamilies; ++f) ASSERT_EQ(stats.pages_used[f], 0);
    ASSERT_EQ(stats.paused + stats.running + stats.waiting, 0);
    preemptions = stats.preemptions;
  }

  int sampled_rows = 0;  // whose input was still being sampled
  uint64_t preemptions = 0;

 private:
  void Plan() {
    std::optional<StepPlan> plan = scheduler_->Plan(now_);
    planned_nothing_ = !plan.has_value();
    if (!plan) {
      ASSERT_TRUE(ranks_.in_flight() > 0 || !scheduler_->has_work()) << "work, and nothing planned";
      return TakeEvents(scheduler_->TakeEvents());
    }
    for (const PlanRow& row : plan->rows) sampled_rows += row.source == InputSource::kSampled;
    ranks_.Apply(*plan);
  }

  void Happen(int index) {
    done_ |= 1u << index;
    const Event& event = case_.events[index];
    const RequestId id{event.id};
    switch (event.kind) {
      case Event::kSubmit: {
        const EngineRequest& request = case_.requests.at(event.id);
        clients_[id] = ShadowClient(request, case_.config.max_context);
        ASSERT_TRUE(scheduler_->Submit(request, now_).ok());
        break;
      }
      case Event::kCancel:
        scheduler_->Cancel(id);
        break;
      case Event::kPause:
        scheduler_->Pause(id);
        break;
      case Event::kResume:
        scheduler_->Resume(id);
        break;
      case Event::kDeadline:
        now_ = case_.requests.at(event.id).deadline;
        break;
    }
  }

  void TakeEvents(const std::vector<EngineEvent>& events) {
    for (const EngineEvent& event : events) clients_.at(event.id).Take(event);
  }

  const Case& case_;
  std::unique_ptr<Scheduler> scheduler_;
  ShadowRanks ranks_;
  std::map<RequestId, ShadowClient> clients_;
  uint32_t done_ = 0;
  double now_ = 1;
  bool planned_nothing_ = false;
};

std::vector<Case> Cases() {
  SchedulerConfig config;
  config.max_context = 200;
  config.max_in_flight = 2;
  config.pages = {0, 20};
  config.max_step_tokens = 4;
  const Event a = {Event::kSubmit, 1}, b = {Event::kSubmit, 2};
  std::vector<Case> cases;
  // The first ends at its stop id while its next row is under way; prompts in two chunks.
  cases.push_back({"Stop", config, {{1, Request(1, 5, 9, 2)}, {2, Request(2, 2, 2)}}, {a, b}});
  cases.push_back({"Cancel",
                   config,
                   {{1, Request(1, 3, 3)}, {2, Request(2, 2, 2)}},
                   {a, b, {Event::kCancel, 1}}});
  cases.push_back(
      {"Pause", config, {{1, Request(1, 2, 3)}}, {a, {Event::kPause, 1}, {Event::kResume, 1, 1}}});
  cases.push_back({"PauseCancel",
                   config,
                   {{1, Request(1, 5, 2)}},
                   {a, {Event::kPause, 1}, {Event::kResume, 1, 1}, {Event::kCancel, 1}}});
  cases.push_back({"HostMask",
                   config,
                   {{1, Request(1, 2, 2, 0, true)}, {2, Request(2, 2, 3)}},
                   {a, b, {Event::kCancel, 2}}});
  // Four pages, and two requests that are about to need their third each: the second is preempted.
  SchedulerConfig tight = config;
  tight.pages = {0, 4};
  tight.max_step_tokens = 40;
  cases.push_back({"Preempt",
                   tight,
                   {{1, Request(1, 13, 22)}, {2, Request(2, 13, 22, 21)}},
                   {a, b, {Event::kCancel, 1}},
                   18});
  cases.push_back({"PreemptPause",
                   tight,
                   {{1, Request(1, 13, 21)}, {2, Request(2, 13, 21)}},
                   {a, b, {Event::kPause, 2}, {Event::kResume, 2, 2}, {Event::kCancel, 2}},
                   18});
  // One place: the interactive request takes it from the batch request, wherever that is.
  SchedulerConfig one_place = config;
  one_place.max_running = 1;
  EngineRequest batch = Request(1, 3, 3);
  batch.priority = Priority::kBatch;
  cases.push_back({"PreemptBatch",
                   one_place,
                   {{1, batch}, {2, Request(2, 3, 1)}},
                   {a, b, {Event::kCancel, 1}}});
  cases.push_back({"PreemptBatchPaused",
                   one_place,
                   {{1, batch}, {2, Request(2, 2, 1)}},
                   {a, {Event::kSubmit, 2, 0}, {Event::kPause, 1, 1}, {Event::kResume, 1, 2}}});
  EngineRequest late = Request(1, 3, 4, 3);
  late.deadline = 10;
  cases.push_back(
      {"Deadline", config, {{1, late}, {2, Request(2, 2, 2)}}, {a, b, {Event::kDeadline, 1}}});
  cases.push_back({"DeadlinePause",
                   config,
                   {{1, late}},
                   {a, {Event::kDeadline, 1}, {Event::kPause, 1, 0}, {Event::kResume, 1, 2}}});
  // Four pages: while the first is paused, the second may take its pages, or may not need them.
  cases.push_back({"PauseTaken",
                   tight,
                   {{1, Request(1, 17, 2)}, {2, Request(2, 33, 2)}},
                   {a, {Event::kPause, 1, 0}, {Event::kResume, 1, 1}, {Event::kSubmit, 2, 1}}});
  SchedulerConfig sliding = config;
  sliding.pages = {2, 3};
  sliding.window = 4;
  sliding.max_step_tokens = 20;
  cases.push_back({"Window",
                   sliding,
                   {{1, Request(1, 15, 4, 3)}, {2, Request(2, 14, 3)}},
                   {a, b, {Event::kCancel, 2}}});
  return cases;
}

class Interleaving : public testing::TestWithParam<Case> {};

TEST_P(Interleaving, EveryOrderEndsWell) {
  const Case& c = GetParam();
  int64_t paths = 0, sampled_rows = 0;
  uint64_t preemptions = 0;
  std::vector<int> taken;
  std::function<void(const Path&)> search = [&](const Path& at) {
    for (const int choice : at.Choices()) {
      taken.push_back(choice);
      Path path(c);
      for (const int step : taken) {
        path.Take(step);
        if (HasFatalFailure()) break;
      }
      const bool failed = HasFatalFailure() || HasNonfatalFailure();
      if (!failed && path.Choices().empty()) {
        path.CheckEnd();
        ++paths;
        sampled_rows += path.sampled_rows;
        preemptions += path.preemptions;
      } else if (!failed) {
        search(path);
      }
      if (HasFatalFailure() || HasNonfatalFailure()) {
        if (!taken.empty()) ADD_FAILURE() << "path " << testing::PrintToString(taken);
        taken.clear();
        return;
      }
      taken.pop_back();
    }
  };
  search(Path(c));
  RecordProperty("paths", std::to_string(paths));
  printf("%s: %ld paths, %ld rows on a token in flight, %lu preemptions\n", c.name.c_str(),
         static_cast<long>(paths), static_cast<long>(sampled_rows),
         static_cast<unsigned long>(preemptions));
  EXPECT_GT(paths, 100);
  EXPECT_GT(sampled_rows, 0);
  if (c.name.starts_with("Preempt")) {
    EXPECT_GT(preemptions, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Interleaving, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lapidary
