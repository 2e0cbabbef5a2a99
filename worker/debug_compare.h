// Finds where two runs of a model part: one run's named intermediates are recorded to a file,
// another run (other compute type, other machine, other version, or Hugging Face's) is compared
// with it in the order of the graph.
//
// A recording, little endian: "LAPREC1\n"; u32 count and i32 token ids; then per intermediate u32
// length and name, i64 rows, i64 width, fp32 values; u32 0 at the end. Names: "embedding",
// "ple_inputs", "layers.N.{qkv, q_rotated, attended, attention_output, after_attention, mlp or
// mlp_and_experts, after_mlp, output}", "final_norm", "logits" (of the first tokens). What the
// other run does not have is left out of the comparison, so a recording may hold just some of them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "worker/model_runner.h"

namespace lapidary {

// Runs the ids as one prompt on one rank and writes every intermediate to `file`.
absl::Status RecordForward(const Checkpoint& checkpoint, RunnerOptions options,
                           const std::vector<TokenId>& ids, const std::string& file);

struct IntermediateDifference {
  std::string name;
  int64_t rows = 0, width = 0;
  double relative_rms = 0;  // rms(difference) / rms(recorded); infinite where one is not a number
  double max_abs = 0;
  int64_t row = 0, column = 0;  // of the largest difference
  float recorded = 0, computed = 0;
  bool same_shape = true;
};

struct CompareReport {
  std::vector<IntermediateDifference> intermediates;  // in the order of the graph
  int first = -1;                                     // the first beyond the tolerance, or -1
  double tolerance = 0;                               // of relative_rms

  // A table of the neighbourhood of the first difference, and a sentence that names it.
  std::string Format() const;
};

// What two runs may differ by before it counts: rounding of the compute type, grown over the
// layers.
double DefaultTolerance(ComputeType compute);

// Runs the recording's ids again and compares. INVALID_ARGUMENT for a file that is not a recording.
absl::StatusOr<CompareReport> CompareForward(const Checkpoint& checkpoint, RunnerOptions options,
                                             const std::string& file, double tolerance);
inline absl::StatusOr<CompareReport> CompareForward(const Checkpoint& checkpoint,
                                                    const RunnerOptions& options,
                                                    const std::string& file) {
  return CompareForward(checkpoint, options, file, DefaultTolerance(options.compute));
}

}  // namespace lapidary
