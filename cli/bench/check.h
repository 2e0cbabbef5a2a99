// Whether an answer is what was asked for. "It did not fail" is not enough: a server can end a
// stream early with every sign of success.
#pragma once
#include <string>

#include "cli/bench/client.h"
#include "cli/bench/workload.h"

namespace lapidary {

struct Verdict {
  std::string kind;    // empty: the answer is good; else a few words that errors are counted by
  std::string detail;  // whose, how many
  bool ok() const { return kind.empty(); }
};

struct CheckOptions {
  bool ignore_eos = true;
  // Accepts a message with several tokens from a server that does not say how many there are.
  bool loose_counts = false;
};

Verdict CheckAnswer(const BenchRequest& request, const BenchAnswer& answer,
                    const CheckOptions& options);

}  // namespace lapidary
