// A run's result as JSON and as a table, and the bar that is drawn meanwhile.
#pragma once
#include <string>

#include "cli/bench/load.h"
#include "cli/bench/workload.h"

namespace lapidary {

struct BenchReport {
  std::string kind;     // "lapidary" or "openai"
  std::string address;  // HOST:PORT, or the URL
  std::string model;    // served name
  WorkloadOptions workload;
  LoadOptions load;
  AskOptions ask;
  LoadResult result;
  Verification verification;
  bool verified = false;    // whether answers were asked for again at all
  double client_cpu_s = 0;  // CPU time of this process while it loaded the server
};

// One object on one line; times in milliseconds; a distribution without values is null.
std::string ReportJson(const BenchReport& report);
std::string ReportTable(const BenchReport& report);
// What keeps the run from being a success, in one line; empty for none.
std::string ReportProblem(const BenchReport& report);

// "[#####.....]  45/128 done, 16 in flight, 1234 tok/s, 0 failed", at most 79 columns.
std::string ProgressLine(const LoadProgress& now, const LoadOptions& options);

}  // namespace lapidary
