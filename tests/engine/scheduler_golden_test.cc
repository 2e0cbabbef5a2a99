// Runs tests/golden/scheduler/*.txt: commands, a line of dashes, and what the scheduler does.
//
//   scheduler_golden_test --rewrite     writes the part below the dashes anew; commit only a
//                                       difference that you can explain
//
// clang-format off
// Commands, one a line, each a second later than the one before ('#' begins a comment):
//   config pages=S,G window=N max_context=N max_running=N max_step_tokens=N max_queued=N
//          max_queued_tokens=N in_flight=N share=PERCENT target_ms=N weight_TENANT=N
//          prefix_cache=1
//   cost row_ms=N token_ms=N       how long steps take from now on: per row of 1, per prompt token
//   submit NAME prompt=N max=N [generated=N] [stop=ID] [prompt_logprobs=N] [host_mask=1]
//          [batch=1] [tenant=TENANT] [deadline=SECONDS from now] [key=CACHE_KEY] [like=N]
//                                  prompts are 0 1 2 ..., like=N only the first N tokens of it
//   cancel NAME   pause NAME   resume NAME
//   plan                           the next step, not completed yet
//   complete [NAME=ID ...]         the oldest step in flight; a row samples ID, or 1000 + its
//                                  position
//   step [NAME=ID ...]             plan, then complete
//   steps N                        N times
//   quiet N                        the same, and only the last is shown
//   stats   retry_after
// clang-format on
//
// A plan: what the ranks forget and learn, then its rows: positions, where the input comes from
// when it is still being sampled (step.row), `sample` or `all`, `mask` when the host has to give
// one, and the pages added (s: sliding, g: global).
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/scheduler.h"

namespace lapidary {
namespace {

bool g_rewrite = false;
constexpr const char* kDirectory = "tests/golden/scheduler";
constexpr const char* kDashes = "----";

using Options = std::map<std::string, std::string>;

int32_t Number(const Options& options, const std::string& key, int32_t otherwise) {
  const auto it = options.find(key);
  return it == options.end() ? otherwise : std::stoi(it->second);
}

class Script {
 public:
  std::string Run(const std::string& commands) {
    std::istringstream lines(commands);
    std::string line;
    while (std::getline(lines, line)) {
      line = line.substr(0, line.find('#'));
      std::istringstream words(line);
      std::string command, word;
      if (!(words >> command)) continue;
      std::vector<std::string> names;
      Options options;
      while (words >> word) {
        const size_t equals = word.find('=');
        if (equals == std::string::npos) {
          names.push_back(word);
        } else {
          options[word.substr(0, equals)] = word.substr(equals + 1);
        }
      }
      Execute(command, names, options);
    }
    return output_;
  }

 private:
  void Execute(const std::string& command, const std::vector<std::string>& names,
               const Options& options) {
    now_ += 1;
    if (command == "config") return Configure(options);
    if (scheduler_ == nullptr) return Print("the first command must be config");
    if (command == "submit") return Submit(names.at(0), options);
    if (command == "cancel") {
      scheduler_->Cancel(ids_.at(names.at(0)));
      return PrintEvents("cancelled", scheduler_->TakeEvents());
    }
    if (command == "pause") return scheduler_->Pause(ids_.at(names.at(0)));
    if (command == "resume") return scheduler_->Resume(ids_.at(names.at(0)));
    if (command == "cost") {
      row_ms_ = Number(options, "row_ms", 0);
      token_ms_ = Number(options, "token_ms", 0);
      return;
    }
    if (command == "plan") return Plan();
    if (command == "complete") return Complete(options);
    if (command == "step") {
      if (Plan(), !in_flight_.empty()) Complete(options);
      return;
    }
    if (command == "steps") {
      for (int i = 0; i < std::stoi(names.at(0)); ++i) Execute("step", {}, {});
      return;
    }
    if (command == "quiet") {
      const int steps = std::stoi(names.at(0));
      for (int i = 0; i < steps; ++i) {
        if (i == steps - 1) Print(absl::StrFormat("(%d steps)", steps - 1));
        const size_t shown = output_.size();
        Execute("step", {}, {});
        if (i < steps - 1) output_.resize(shown);
      }
      return;
    }
    if (command == "stats") return PrintStats();
    if (command == "retry_after") {
      return Print(absl::StrFormat("retry after %.1f s", scheduler_->RetryAfterSeconds()));
    }
    Print(absl::StrCat("unknown command ", command));
  }

  void Configure(const Options& options) {
    SchedulerConfig config;
    const std::string pages = options.at("pages");
    const size_t comma = pages.find(',');
    config.pages = {std::stoi(pages), std::stoi(pages.substr(comma + 1))};
    config.window = Number(options, "window", 0);
    config.max_context = Number(options, "max_context", 1000);
    config.max_running = Number(options, "max_running", 8);
    config.max_step_tokens = Number(options, "max_step_tokens", 64);
    config.max_queued = Number(options, "max_queued", 100);
    config.max_in_flight = Number(options, "in_flight", 1);
    config.max_queued_tokens = Number(options, "max_queued_tokens", 0);
    config.step_seconds_target = Number(options, "target_ms", 0) / 1000.0;
    for (const auto& [key, value] : options) {
      if (key.starts_with("weight_")) config.tenant_weights[key.substr(7)] = std::stoi(value);
    }
    config.expected_output_share = Number(options, "share", 0) / 100.0;
    config.prefix_cache = Number(options, "prefix_cache", 0) != 0;
    scheduler_ = Scheduler::Create(config);
  }

  void Submit(const std::string& name, const Options& options) {
    EngineRequest request;
    NewSequence& sequence = request.sequence;
    sequence.id = RequestId{next_id_++};
    sequence.prompt_len = Number(options, "prompt", 0);
    for (int32_t i = 0; i < sequence.prompt_len + Number(options, "generated", 0); ++i) {
      sequence.tokens.push_back(i < Number(options, "like", 1 << 30) ? i : 10000 + i);
    }
    sequence.sampling.max_tokens = Number(options, "max", 0);
    sequence.sampling.prompt_logprobs = Number(options, "prompt_logprobs", -1);
    sequence.needs_host_mask = Number(options, "host_mask", 0) != 0;
    if (options.contains("stop")) sequence.sampling.stop_ids = {Number(options, "stop", 0)};
    if (options.contains("batch")) request.priority = Priority::kBatch;
    if (options.contains("tenant")) request.tenant = options.at("tenant");
    if (options.contains("key")) request.cache_key = options.at("key");
    if (options.contains("deadline")) request.deadline = now_ + Number(options, "deadline", 0);
    ids_[name] = sequence.id;
    names_[sequence.id] = name;
    request.submit_time = now_;
    const absl::Status status = scheduler_->Submit(request, now_);
    if (!status.ok()) Print(absl::StrCat("submit ", name, ": ", status.ToString()));
  }

  void Plan() {
    std::optional<StepPlan> plan = scheduler_->Plan(now_);
    if (!plan) {
      Print("plan: nothing");
      return PrintEvents("events", scheduler_->TakeEvents());
    }
    std::vector<std::string> parts;
    for (RequestId id : plan->finished) parts.push_back("forget " + names_[id]);
    for (const NewSequence& sequence : plan->added) {
      parts.push_back(absl::StrFormat("add %s of %d+%d", names_[sequence.id], sequence.prompt_len,
                                      sequence.tokens.size() - sequence.prompt_len));
      if (sequence.cached_len > 0) absl::StrAppend(&parts.back(), " at ", sequence.cached_len);
    }
    for (const PlanRow& row : plan->rows) {
      std::string part =
          absl::StrFormat("%s [%d,%d)", names_[row.seq], row.start, row.start + row.len);
      if (row.source == InputSource::kSampled) {
        absl::StrAppendFormat(&part, " from %d.%d", row.source_step, row.source_row);
      }
      if (row.logits == LogitsMask::kAll) part += " all";
      if (row.samples) part += " sample";
      if (row.needs_host_mask) part += " mask";
      for (int f = 0; f < kKvFamilies; ++f) {
        if (row.pages_added[f].empty()) continue;
        part += f == 0 ? " s+" : " g+";
        part += absl::StrJoin(row.pages_added[f], ",", [](std::string* out, PageId page) {
          absl::StrAppend(out, page.value);
        });
      }
      parts.push_back(part);
    }
    Print(absl::StrFormat("plan %d: %s", plan->step, absl::StrJoin(parts, " | ")));
    for (const NewSequence& sequence : plan->added) prompt_len_[sequence.id] = sequence.prompt_len;
    in_flight_.push_back(*std::move(plan));
  }

  void Complete(const Options& sampled) {
    if (in_flight_.empty()) return Print("complete: nothing is in flight");
    const StepPlan plan = std::move(in_flight_.front());
    in_flight_.pop_front();
    StepResult result;
    result.step = plan.step;
    for (const PlanRow& row : plan.rows) {
      StepResultRow got;
      got.seq = row.seq;
      const int32_t end = row.start + row.len;
      result.forward_seconds += 0.001 * (row.len == 1 ? row_ms_ : token_ms_ * row.len);
      if (row.logits == LogitsMask::kAll) {
        for (int32_t i = row.start + 1; i <= std::min(end, prompt_len_[row.seq] - 1); ++i) {
          ScoredToken scored;
          scored.id = i;
          got.prompt_scored.push_back(scored);
        }
      }
      if (row.samples) {
        ScoredToken token;
        token.id = Number(sampled, names_[row.seq], 1000 + end);
        got.sampled.push_back(token);
      }
      result.rows.push_back(std::move(got));
    }
    PrintEvents(absl::StrFormat("done %d", plan.step), scheduler_->Complete(result, now_));
  }

  void PrintEvents(const std::string& title, const std::vector<EngineEvent>& events) {
    static constexpr const char* kFinish[] = {"", " stop", " length", " cancelled", " error"};
    std::vector<std::string> parts;
    for (const EngineEvent& event : events) {
      std::string part = names_[event.id];
      if (!event.prompt_scored.empty()) {
        absl::StrAppendFormat(&part, " scored [%d,%d]", event.prompt_scored.front().id,
                              event.prompt_scored.back().id);
      }
      for (const ScoredToken& token : event.tokens) absl::StrAppend(&part, " ", token.id);
      part += kFinish[static_cast<int>(event.finish)];
      if (event.stop_id >= 0) absl::StrAppend(&part, "=", event.stop_id);
      if (!event.error.ok()) absl::StrAppend(&part, " ", event.error.ToString());
      if (event.cached_tokens > 0) absl::StrAppend(&part, " cached=", event.cached_tokens);
      if (part != names_[event.id]) parts.push_back(part);
    }
    if (!parts.empty()) Print(absl::StrCat(title, ": ", absl::StrJoin(parts, " | ")));
  }

  void PrintStats() {
    const EngineStats s = scheduler_->stats();
    Print(absl::StrFormat(
        "stats: waiting=%d (%d tokens) running=%d sliding=%d/%d global=%d/%d preemptions=%d "
        "decode_rows=%d prefill_tokens=%d%s%s%s%s%s",
        s.waiting, s.waiting_tokens, s.running, s.pages_used[0], s.pages_total[0], s.pages_used[1],
        s.pages_total[1], s.preemptions, s.decode_rows, s.prefill_tokens,
        s.recomputed_tokens > 0 ? absl::StrFormat(" recomputed=%d", s.recomputed_tokens) : "",
        s.waiting_batch + s.running_batch > 0
            ? absl::StrFormat(" batch=%d+%d", s.waiting_batch, s.running_batch)
            : "",
        s.prefix_lookup_tokens > 0
            ? absl::StrFormat(" cached=%d,%d found=%d/%d evicted=%d", s.pages_cached[0],
                              s.pages_cached[1], s.prefix_hit_tokens, s.prefix_lookup_tokens,
                              s.prefix_evicted_pages)
            : "",
        s.paused > 0 ? absl::StrFormat(" paused=%d", s.paused) : "",
        scheduler_->idle() ? " idle" : ""));
  }

  void Print(const std::string& line) { absl::StrAppend(&output_, line, "\n"); }

  std::unique_ptr<Scheduler> scheduler_;
  std::deque<StepPlan> in_flight_;
  std::map<std::string, RequestId> ids_;
  std::map<RequestId, std::string> names_;
  std::map<RequestId, int32_t> prompt_len_;
  uint64_t next_id_ = 1;
  double now_ = 0;
  int32_t row_ms_ = 0, token_ms_ = 0;
  std::string output_;
};

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kDirectory)) {
    if (entry.path().extension() == ".txt") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class SchedulerGolden : public testing::TestWithParam<std::string> {};

TEST_P(SchedulerGolden, DoesWhatTheScriptSays) {
  const std::string path = absl::StrCat(kDirectory, "/", GetParam(), ".txt");
  std::ifstream file(path);
  std::stringstream whole;
  whole << file.rdbuf();
  const std::string text = whole.str();
  size_t split = text.find(absl::StrCat("\n", kDashes, "\n"));
  if (g_rewrite && split == std::string::npos) split = text.size() - 1;
  ASSERT_NE(split, std::string::npos) << path << " has no line " << kDashes;
  const std::string commands = text.substr(0, split + 1);
  const std::string got = absl::StrCat(commands, kDashes, "\n", Script().Run(commands));
  if (g_rewrite) {
    std::ofstream(path) << got;
    return;
  }
  EXPECT_EQ(got, text) << path;
}

INSTANTIATE_TEST_SUITE_P(Scripts, SchedulerGolden, testing::ValuesIn(Names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) lapidary::g_rewrite |= std::string(argv[i]) == "--rewrite";
  return RUN_ALL_TESTS();
}
