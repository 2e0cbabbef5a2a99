// Reads a page of metrics in Prometheus' text format 0.0.4 (and what OpenMetrics adds at the end of
// a line: timestamps and exemplars are skipped).
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace lapidary {

struct MetricSample {
  std::string name;
  std::map<std::string, std::string> labels;
  double value = 0;
};

// A cumulative histogram: observations at most `bound`, by ascending bound; the last is +Inf.
using MetricBuckets = std::vector<std::pair<double, double>>;

class MetricsPage {
 public:
  // INVALID_ARGUMENT names the line that is no sample.
  static absl::StatusOr<MetricsPage> Parse(std::string_view text);

  const std::vector<MetricSample>& samples() const { return samples_; }
  // Families by name: "counter", "gauge", ...; and what their HELP says.
  const std::map<std::string, std::string>& types() const { return types_; }
  const std::map<std::string, std::string>& helps() const { return helps_; }

  // Sum over the samples of this name that have these labels and perhaps others; nothing when there
  // is none. NaN samples count as absent.
  std::optional<double> Sum(std::string_view name,
                            const std::map<std::string, std::string>& labels = {}) const;
  // A label's value in the first sample of this name; empty when there is none.
  std::string Label(std::string_view name, const std::string& label) const;
  // Buckets of a histogram, summed over its series that have these labels.
  MetricBuckets Buckets(std::string_view name,
                        const std::map<std::string, std::string>& labels = {}) const;

 private:
  std::vector<MetricSample> samples_;
  std::map<std::string, std::string> types_, helps_;
};

// The q-quantile of what `after` counts beyond `before` (which may be empty), linear within a
// bucket as Prometheus' histogram_quantile; past the last finite bound it is that bound. Nothing
// when nothing was observed, or when the buckets are not those of one histogram.
std::optional<double> QuantileOfDifference(const MetricBuckets& before, const MetricBuckets& after,
                                           double q);

}  // namespace lapidary
