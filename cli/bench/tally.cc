#include "cli/bench/tally.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lapidary {
namespace {

float Between(BenchTime from, BenchTime to) {
  return std::chrono::duration<float>(to - from).count();
}

}  // namespace

double Percentile(const std::vector<float>& sorted, double p) {
  const double rank = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(double{sorted[below]}, double{sorted[above]}, rank - static_cast<double>(below));
}

Distribution Summarise(std::vector<float> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  Distribution d;
  d.count = std::ssize(values);
  d.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(d.count);
  d.min = values.front();
  d.p50 = Percentile(values, 50);
  d.p90 = Percentile(values, 90);
  d.p99 = Percentile(values, 99);
  d.max = values.back();
  return d;
}

void Tally::Add(const BenchAnswer& answer, const Verdict& verdict) {
  first_start = std::min(first_start, answer.started);
  last_end = std::max(last_end, answer.finished);
  if (!verdict.ok()) {
    ++failed;
    ++errors[verdict.kind];
    examples.emplace(verdict.kind, verdict.detail);
    return;
  }
  ++good;
  prompt_tokens += answer.prompt_tokens.value_or(0);
  cached_tokens += answer.cached_tokens.value_or(0);
  output_tokens += answer.Tokens();
  messages += std::ssize(answer.arrivals);
  exact_counts &= answer.exact_counts;
  latency.push_back(Between(answer.started, answer.finished));
  if (answer.arrivals.empty()) return;
  const BenchTime first = answer.arrivals.front().time;
  first_token.push_back(Between(answer.started, first));
  // The first message has no time before it: further tokens in it follow at once.
  token_gap.insert(token_gap.end(), static_cast<size_t>(answer.arrivals.front().tokens - 1), 0.0f);
  for (size_t i = 1; i < answer.arrivals.size(); ++i) {
    const TokenArrival& arrival = answer.arrivals[i];
    const float gap = Between(answer.arrivals[i - 1].time, arrival.time);
    message_gap.push_back(gap);
    token_gap.insert(token_gap.end(), static_cast<size_t>(arrival.tokens),
                     gap / static_cast<float>(arrival.tokens));
  }
  if (answer.Tokens() > 1) {
    per_token.push_back(Between(first, answer.arrivals.back().time) /
                        static_cast<float>(answer.Tokens() - 1));
  }
}

double Tally::Seconds() const {
  return last_end <= first_start ? 0
                                 : std::chrono::duration<double>(last_end - first_start).count();
}

}  // namespace lapidary
