// What a run amounts to: good and failed answers, and the distributions of their times.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cli/bench/check.h"
#include "cli/bench/client.h"

namespace lapidary {

struct Distribution {
  int64_t count = 0;
  double mean = 0, min = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;  // all 0 without values
};

// The p-th percentile (0 to 100) of sorted, non-empty values: linear between the two nearest ranks,
// as numpy does by default.
double Percentile(const std::vector<float>& sorted, double p);
Distribution Summarise(std::vector<float> values);

// Adds up answers. A failed one gives its kind and nothing else: no time and no token of it counts.
class Tally {
 public:
  void Add(const BenchAnswer& answer, const Verdict& verdict);

  int64_t good = 0, failed = 0;
  int64_t prompt_tokens = 0, output_tokens = 0, cached_tokens = 0;
  int64_t messages = 0;  // that brought the output tokens
  bool exact_counts = true;
  std::map<std::string, int64_t> errors;        // by kind
  std::map<std::string, std::string> examples;  // the first of each kind

  // Seconds; floats, since a long run has millions.
  std::vector<float> first_token;  // due -> first token
  // Between tokens. The k tokens of a message that comes t after the one before are k gaps of t /
  // k: the client can not see inside a message. message_gap has the whole t once.
  std::vector<float> token_gap, message_gap;
  std::vector<float> latency;    // due -> end of the stream
  std::vector<float> per_token;  // (last token - first token) / (tokens - 1), of each answer

  BenchTime first_start = BenchTime::max(), last_end = BenchTime::min();
  double Seconds() const;  // from the first request to the last answer; 0 without answers
};

}  // namespace lapidary
