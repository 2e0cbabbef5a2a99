// What `lapidary top` shows: numbers from two pages of a coordinator's metrics, and the table they
// make. Both pure.
#pragma once
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/top/metrics_text.h"

namespace lapidary {

struct TopView {
  struct Work {
    double running = 0, waiting = 0;
  };
  struct Family {
    double used = 0, cached = 0, total = 0;  // pages
  };

  std::string model, version;
  bool ready = false, draining = false;
  double epoch = 0;
  double uptime_seconds = 0;
  std::vector<bool> workers_up;  // by rank
  double interval_seconds = 0;   // of all rates and latencies; the uptime on the first page

  Work interactive, batch;
  double paused = 0, queued_tokens = 0, open_streams = 0;
  double prompt_rate = 0, output_rate = 0, ended_rate = 0;  // per second
  // Nothing: none was observed in the interval.
  std::optional<double> first_token_p50, first_token_p99, gap_p50, gap_p99;  // seconds
  std::array<Family, 2> kv;                                                  // sliding, global
  std::optional<double> prefix_hits;  // share of the prompt tokens looked up
  double preemptions = 0, new_preemptions = 0, recomputed_rate = 0;
  double step_rate = 0;
  // Per step; nothing: no step in the interval.
  std::optional<double> plan_seconds, forward_seconds, sample_seconds, decode_rows, step_tokens;
};

// `before` came `seconds` earlier; null, or of an earlier process: since the start. `now` is
// seconds since the epoch. INVALID_ARGUMENT when the page is not a coordinator's.
absl::StatusOr<TopView> MakeTopView(const MetricsPage* before, const MetricsPage& after,
                                    double seconds, double now);

// Lines of at most `width` columns, ASCII.
std::vector<std::string> RenderTop(const TopView& view, int width);

}  // namespace lapidary
