#include "cli/bench/load.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kTick = std::chrono::milliseconds(100);  // how often progress and stop are looked at

Clock::duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// When the next request is due. Only the arrival times of a rate are kept apart from the answers.
class Pacer {
 public:
  Pacer(const Workload& workload, const LoadOptions& options, BenchTime start)
      : workload_(workload), options_(options), start_(start), due_(start) {
    if (options_.rate > 0) due_ += FromSeconds(workload_.SecondsBefore(0));
  }

  bool MoreToCome(BenchTime now) const {
    if (options_.requests > 0 && sent_ >= options_.requests) return false;
    if (options_.duration_s <= 0) return true;
    return (options_.rate > 0 ? due_ : now) < start_ + FromSeconds(options_.duration_s);
  }
  bool IsDue(BenchTime now, int64_t in_flight) const {
    return options_.rate > 0 ? due_ <= now : in_flight < options_.concurrency;
  }
  BenchTime due(BenchTime now) const { return options_.rate > 0 ? due_ : now; }
  BenchTime NextLook(BenchTime now) const {
    return options_.rate > 0 ? std::min(due_, now + kTick) : now + kTick;
  }
  void Sent() {
    ++sent_;
    if (options_.rate > 0) due_ += FromSeconds(workload_.SecondsBefore(sent_));
  }
  int64_t sent() const { return sent_; }

 private:
  const Workload& workload_;
  const LoadOptions& options_;
  const BenchTime start_;
  BenchTime due_;
  int64_t sent_ = 0;
};

}  // namespace

LoadResult RunLoad(BenchClient& client, const Workload& workload, const LoadOptions& options,
                   const std::function<bool()>& stopped,
                   const std::function<void(const LoadProgress&)>& progress) {
  LoadResult result;
  std::map<int64_t, BenchRequest> in_flight;  // by index
  const BenchTime start = Clock::now();
  BenchTime next_tick = start + kTick;
  Pacer pacer(workload, options, start);
  const int64_t patience = std::max<int64_t>(32, 2 * options.concurrency);
  int64_t failed_in_a_row = 0;
  bool cancelled = false;
  const auto stop = [&](absl::Status status) {
    if (cancelled) return;
    cancelled = true;
    result.status = std::move(status);
    client.CancelAll();
  };
  std::vector<BenchAnswer> answers;
  while (true) {
    BenchTime now = Clock::now();
    while (!cancelled && pacer.MoreToCome(now) && pacer.IsDue(now, std::ssize(in_flight))) {
      const int64_t index = pacer.sent();
      const BenchRequest& request = in_flight.emplace(index, workload.Make(index)).first->second;
      client.Send(request, pacer.due(now));
      pacer.Sent();
      now = Clock::now();
    }
    if (in_flight.empty() && (cancelled || !pacer.MoreToCome(now))) break;
    answers.clear();
    client.Poll(pacer.NextLook(now), &answers);
    for (BenchAnswer& answer : answers) {
      const auto asked = in_flight.find(answer.index);
      const Verdict verdict = CheckAnswer(asked->second, answer, options.check);
      in_flight.erase(asked);
      // What we cancelled ourselves says nothing about the server.
      if (cancelled && !verdict.ok()) continue;
      result.tally.Add(answer, verdict);
      failed_in_a_row = verdict.ok() ? 0 : failed_in_a_row + 1;
      const bool kept = !answer.token_ids.empty() || !answer.text.empty();
      if (verdict.ok() && kept) result.answers.push_back(std::move(answer));
    }
    if (failed_in_a_row >= patience) {
      stop(absl::AbortedError(absl::StrFormat("given up: %d failures in a row", failed_in_a_row)));
    }
    if (Clock::now() < next_tick) continue;
    next_tick = Clock::now() + kTick;
    if (stopped()) stop(absl::CancelledError("stopped"));
    progress({.sent = pacer.sent(),
              .in_flight = std::ssize(in_flight),
              .good = result.tally.good,
              .failed = result.tally.failed,
              .tokens = client.arrived_tokens(),
              .seconds = std::chrono::duration<double>(Clock::now() - start).count()});
  }
  result.sent = pacer.sent();
  return result;
}

absl::Status WarmUp(BenchClient& client, const Workload& workload, int64_t count,
                    const LoadOptions& options, const std::function<bool()>& stopped) {
  int64_t sent = 0, answered = 0;
  std::vector<BenchAnswer> answers;
  while (answered < count) {
    while (sent < count && sent - answered < std::max<int64_t>(1, options.concurrency)) {
      client.Send(workload.Make(-1 - sent++), Clock::now());
    }
    answers.clear();
    client.Poll(Clock::now() + kTick, &answers);
    answered += std::ssize(answers);
    for (const BenchAnswer& answer : answers) {
      const Verdict verdict = CheckAnswer(workload.Make(answer.index), answer, options.check);
      if (!verdict.ok()) {
        return absl::FailedPreconditionError(
            absl::StrFormat("warming up: %s: %s", verdict.kind, verdict.detail));
      }
    }
    if (stopped()) return absl::CancelledError("stopped");
  }
  return absl::OkStatus();
}

Verification VerifyAnswers(BenchClient& client, const Workload& workload,
                           const std::vector<BenchAnswer>& answers, int64_t count,
                           const CheckOptions& check, const std::function<bool()>& stopped) {
  Verification result;
  const int64_t total = std::ssize(answers);
  count = std::min(count, total);
  for (int64_t i = 0; i < count && !stopped(); ++i) {
    const BenchAnswer& before = answers[static_cast<size_t>(i * total / count)];
    const BenchRequest request = workload.Make(before.index);
    client.Send(request, Clock::now());
    std::vector<BenchAnswer> again;
    bool cancelled = false;
    while (again.empty()) {
      client.Poll(Clock::now() + kTick, &again);
      if (!cancelled && stopped()) {
        cancelled = true;
        client.CancelAll();
      }
    }
    if (cancelled) break;
    ++result.checked;
    const Verdict verdict = CheckAnswer(request, again[0], check);
    const bool same = again[0].token_ids == before.token_ids && again[0].text == before.text;
    if (verdict.ok() && same) continue;
    if (!verdict.ok()) ++result.failed;
    if (verdict.ok()) ++result.different;
    if (!result.example.empty()) continue;
    const auto differ = std::mismatch(before.token_ids.begin(), before.token_ids.end(),
                                      again[0].token_ids.begin(), again[0].token_ids.end());
    result.example = !verdict.ok() ? verdict.detail
                     : before.token_ids.empty()
                         ? absl::StrFormat("request %d: another text when alone", before.index)
                         : absl::StrFormat("request %d: another token at %d when alone",
                                           before.index, differ.first - before.token_ids.begin());
  }
  return result;
}

}  // namespace lapidary
