// Drives a client with a workload: closed loop or Poisson arrivals.
#pragma once
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "cli/bench/check.h"
#include "cli/bench/client.h"
#include "cli/bench/tally.h"
#include "cli/bench/workload.h"

namespace lapidary {

struct LoadOptions {
  int64_t requests = 0;     // how many; 0: as many as `duration_s` holds
  double duration_s = 0;    // nothing new is sent after this; 0: no such limit
  int64_t concurrency = 1;  // closed loop: so many are always in flight. Unused with a rate
  double rate = 0;  // Poisson arrivals a second, whatever is still in flight; 0: closed loop
  CheckOptions check;
};

struct LoadProgress {
  int64_t sent = 0, in_flight = 0, good = 0, failed = 0, tokens = 0;
  double seconds = 0;
};

struct LoadResult {
  Tally tally;
  int64_t sent = 0;
  std::vector<BenchAnswer> answers;  // the good ones, where the client keeps them
  absl::Status status;               // CANCELLED: stopped; ABORTED: given up
};

// Runs until everything sent has been answered. Asks `stopped` a few times a second; true cancels
// what is in flight. Gives up when only failures come, so that a dead server does not eat a run of
// an hour. `progress` is called a few times a second.
LoadResult RunLoad(BenchClient& client, const Workload& workload, const LoadOptions& options,
                   const std::function<bool()>& stopped,
                   const std::function<void(const LoadProgress&)>& progress);

// Sends requests first ... first + count - 1, `concurrency` at a time, and waits. Nothing is
// measured: for warming up.
absl::Status WarmUp(BenchClient& client, const Workload& workload, int64_t count,
                    const LoadOptions& options, const std::function<bool()>& stopped);

// Asks for up to `count` of the good answers again, one at a time, spread over the run.
struct Verification {
  int64_t checked = 0, different = 0, failed = 0;
  std::string example;  // the first difference or failure
};
Verification VerifyAnswers(BenchClient& client, const Workload& workload,
                           const std::vector<BenchAnswer>& answers, int64_t count,
                           const CheckOptions& check, const std::function<bool()>& stopped);

}  // namespace lapidary
