// What a load generator asks for: prompts, lengths and arrival times, all from one seed.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace lapidary {

// Random numbers that depend on (seed, purpose, index) alone, so that a request is the same one
// whatever was drawn before it. splitmix64; the distributions are written out, since those of the
// standard library differ between implementations.
class BenchRandom {
 public:
  BenchRandom(uint64_t seed, uint64_t purpose, uint64_t index);
  uint64_t Next();
  double Uniform();                // [0, 1)
  uint64_t Below(uint64_t bound);  // [0, bound); bound > 0
  double Normal();                 // mean 0, deviation 1
  double Exponential();            // mean 1
 private:
  uint64_t state_;
};

// A distribution of token counts.
struct LengthMix {
  // "128" (fixed), "64-256" (uniform) or "lognormal:MEDIAN,SIGMA[,MIN,MAX]": the natural logarithm
  // is normal with mean ln(MEDIAN) and deviation SIGMA, and what falls outside is moved to the
  // bound (default 1 and 16 times the median).
  static absl::StatusOr<LengthMix> Parse(std::string_view text);
  int64_t Draw(BenchRandom& random) const;
  std::string ToString() const;  // what Parse reads

  bool lognormal = false;
  double median = 0, sigma = 0;  // of a log-normal mix
  int64_t min = 1, max = 1;      // inclusive
};

struct WorkloadOptions {
  uint64_t seed = 0;
  LengthMix prompt_tokens;  // a request's own part, behind the shared prefix
  LengthMix output_tokens;
  int64_t shared_prefix_tokens = 0;
  int64_t prefix_groups = 1;   // so many different prefixes
  uint32_t vocabulary = 0;     // prompts are random ids from its middle ...
  std::vector<uint32_t> text;  // ... or, where not empty, slices of this
  int64_t bos = -1;            // first token of every prompt; -1: none
  double rate = 0;             // mean arrivals a second, Poisson; 0: none are drawn
};

struct BenchRequest {
  int64_t index = 0;
  std::vector<uint32_t> prompt;
  uint32_t output_tokens = 0;
  uint64_t sampling_seed = 0;
};

class Workload {
 public:
  // INVALID_ARGUMENT names what can not be: a vocabulary without room, lengths below one.
  static absl::StatusOr<Workload> Create(WorkloadOptions options);

  // Request `index`; any index, in any order. Negative ones are for warming up.
  BenchRequest Make(int64_t index) const;
  // Seconds from the arrival of request index - 1 to that of `index`; rate > 0.
  double SecondsBefore(int64_t index) const;
  // The longest prompt and the longest prompt plus output that Make can return.
  int64_t max_prompt_tokens() const;
  int64_t max_total_tokens() const;
  const WorkloadOptions& options() const { return options_; }

 private:
  explicit Workload(WorkloadOptions options);
  void Append(BenchRandom& random, int64_t count, std::vector<uint32_t>* prompt) const;

  WorkloadOptions options_;
  uint32_t first_id_ = 0, ids_ = 1;  // random ids are first_id_ ... first_id_ + ids_ - 1
};

}  // namespace lapidary
