#include "cli/top/top_view.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

constexpr const char* kFamilies[2] = {"sliding", "global"};

// Numbers of a page, and what they grew by since another.
class Pages {
 public:
  Pages(const MetricsPage* before, const MetricsPage& after, double seconds)
      : before_(before), after_(after), seconds_(std::max(seconds, 1e-9)) {}

  double Now(const char* name, const std::map<std::string, std::string>& labels = {}) const {
    return after_.Sum(name, labels).value_or(0);
  }
  double Growth(const char* name, const std::map<std::string, std::string>& labels = {}) const {
    const double earlier = before_ != nullptr ? before_->Sum(name, labels).value_or(0) : 0;
    return std::max(Now(name, labels) - earlier, 0.0);
  }
  double Rate(const char* name) const { return Growth(name) / seconds_; }
  std::optional<double> Quantile(const char* name, double q) const {
    const MetricBuckets earlier = before_ != nullptr ? before_->Buckets(name) : MetricBuckets();
    return QuantileOfDifference(earlier, after_.Buckets(name), q);
  }
  // Mean of a histogram's observations.
  std::optional<double> Mean(const std::string& name,
                             const std::map<std::string, std::string>& labels = {}) const {
    return Ratio(Growth((name + "_sum").c_str(), labels),
                 Growth((name + "_count").c_str(), labels));
  }
  static std::optional<double> Ratio(double part, double whole) {
    if (!(whole > 0)) return std::nullopt;
    return part / whole;
  }

 private:
  const MetricsPage* const before_;
  const MetricsPage& after_;
  const double seconds_;
};

// "1,234,567"
std::string Grouped(double value) {
  std::string digits = absl::StrFormat("%.0f", std::isfinite(value) ? std::max(value, 0.0) : 0.0);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

std::string Rate(double value) {
  return value < 100 ? absl::StrFormat("%.1f", value) : Grouped(value);
}

std::string Seconds(const std::optional<double>& seconds) {
  if (!seconds) return "-";
  if (*seconds < 0.001) return absl::StrFormat("%.0f us", *seconds * 1e6);
  if (*seconds < 0.01) return absl::StrFormat("%.2f ms", *seconds * 1e3);
  if (*seconds < 1) return absl::StrFormat("%.0f ms", *seconds * 1e3);
  return absl::StrFormat("%.2f s", *seconds);
}

std::string Uptime(double seconds) {
  const auto minutes = static_cast<int64_t>(std::max(seconds, 0.0) / 60);
  if (minutes < 1) return absl::StrFormat("%.0f s", std::max(seconds, 0.0));
  if (minutes < 60) return absl::StrFormat("%d min", minutes);
  if (minutes < 48 * 60) return absl::StrFormat("%d h %02d min", minutes / 60, minutes % 60);
  return absl::StrFormat("%d days %d h", minutes / 1440, minutes / 60 % 24);
}

// '#' used, ':' kept for a prefix, '.' free. What is not nothing is at least one character.
std::string Bar(const TopView::Family& f, int width) {
  const auto cells = [&](double pages) {
    const double share = f.total > 0 ? std::clamp(pages / f.total, 0.0, 1.0) : 0;
    const int n = static_cast<int>(std::lround(share * width));
    return pages > 0 && n == 0 ? 1 : n;
  };
  const int used = std::min(cells(f.used), width);
  const int cached = std::min(cells(f.cached), width - used);
  return std::string(used, '#') + std::string(cached, ':') +
         std::string(width - used - cached, '.');
}

std::string Percent(double part, double whole) {
  return absl::StrFormat("%.1f%%", whole > 0 ? 100 * part / whole : 0.0);
}

// A label of the server's: no escape sequence of its reaches the terminal.
std::string Printable(std::string text) {
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text;
}

std::string State(const TopView& view) {
  std::string state = view.draining ? "draining" : view.ready ? "ready" : "not ready";
  std::string missing;
  for (size_t rank = 0; rank < view.workers_up.size(); ++rank) {
    if (!view.workers_up[rank]) absl::StrAppend(&missing, missing.empty() ? "" : ",", rank);
  }
  if (!missing.empty()) absl::StrAppend(&state, ", rank ", missing, " is missing");
  return state;
}

}  // namespace

absl::StatusOr<TopView> MakeTopView(const MetricsPage* before, const MetricsPage& after,
                                    double seconds, double now) {
  if (!after.Sum("lapidary_group_ready")) {
    return absl::InvalidArgumentError(
        "the page has no lapidary_group_ready: these are not a coordinator's metrics");
  }
  const double started = after.Sum("process_start_time_seconds").value_or(now);
  if (before != nullptr &&
      before->Sum("process_start_time_seconds").value_or(now) < started - 0.5) {
    before = nullptr;  // another process answers now
  }
  TopView v;
  v.uptime_seconds = std::max(now - started, 0.0);
  v.interval_seconds = before != nullptr ? seconds : v.uptime_seconds;
  const Pages pages(before, after, v.interval_seconds);
  v.model = after.Label("lapidary_group_ready", "model_name");
  v.version = after.Label("lapidary_build_info", "version");
  v.ready = pages.Now("lapidary_group_ready") > 0;
  v.draining = pages.Now("lapidary_draining") > 0;
  v.epoch = pages.Now("lapidary_epoch");
  for (int rank = 0;; ++rank) {
    const auto up = after.Sum("lapidary_worker_up", {{"rank", absl::StrCat(rank)}});
    if (!up) break;
    v.workers_up.push_back(*up > 0);
  }
  const auto work = [&pages](const char* name) {
    return TopView::Work{pages.Now("lapidary_requests_running_by_class", {{"class", name}}),
                         pages.Now("lapidary_requests_waiting_by_class", {{"class", name}})};
  };
  v.interactive = work("interactive");
  v.batch = work("batch");
  v.paused = pages.Now("lapidary_requests_paused");
  v.queued_tokens = pages.Now("lapidary_queued_prompt_tokens");
  v.open_streams = pages.Now("lapidary_streams_open");
  v.prompt_rate = pages.Rate("lapidary_prompt_tokens_total");
  v.output_rate = pages.Rate("lapidary_generation_tokens_total");
  v.ended_rate = pages.Rate("lapidary_requests_total");
  v.first_token_p50 = pages.Quantile("lapidary_time_to_first_token_seconds", 0.5);
  v.first_token_p99 = pages.Quantile("lapidary_time_to_first_token_seconds", 0.99);
  v.gap_p50 = pages.Quantile("lapidary_inter_token_latency_seconds", 0.5);
  v.gap_p99 = pages.Quantile("lapidary_inter_token_latency_seconds", 0.99);
  for (int f = 0; f < 2; ++f) {
    v.kv[f] = TopView::Family{pages.Now("lapidary_kv_pages_used", {{"family", kFamilies[f]}}),
                              pages.Now("lapidary_kv_pages_cached", {{"family", kFamilies[f]}}),
                              pages.Now("lapidary_kv_pages", {{"family", kFamilies[f]}})};
  }
  v.prefix_hits = Pages::Ratio(pages.Growth("lapidary_prefix_cache_hits_total"),
                               pages.Growth("lapidary_prefix_cache_queries_total"));
  v.preemptions = pages.Now("lapidary_preemptions_total");
  v.new_preemptions = pages.Growth("lapidary_preemptions_total");
  v.recomputed_rate = pages.Rate("lapidary_recomputed_tokens_total");
  v.step_rate = pages.Rate("lapidary_steps_total");
  v.plan_seconds = pages.Mean("lapidary_step_seconds", {{"part", "plan"}});
  v.forward_seconds = pages.Mean("lapidary_step_seconds", {{"part", "forward"}});
  v.sample_seconds = pages.Mean("lapidary_step_seconds", {{"part", "sample"}});
  v.step_tokens = pages.Mean("lapidary_step_tokens");
  v.decode_rows = Pages::Ratio(pages.Growth("lapidary_decode_rows_total"),
                               pages.Growth("lapidary_steps_total"));
  return v;
}

std::vector<std::string> RenderTop(const TopView& v, int width) {
  std::vector<std::string> lines;
  const auto add = [&lines](std::string line) { lines.push_back(std::move(line)); };
  add(absl::StrFormat("%s   %s   epoch %.0f   up %s   lapidary %s", Printable(v.model), State(v),
                      v.epoch, Uptime(v.uptime_seconds), Printable(v.version)));
  add("");
  add(absl::StrFormat("%-14s%9s%9s%9s", "requests", "running", "waiting", "paused"));
  const auto row = [&add](const char* name, const TopView::Work& w, const std::string& paused) {
    add(absl::StrFormat("  %-12s%9s%9s%9s", name, Grouped(w.running), Grouped(w.waiting), paused));
  };
  row("interactive", v.interactive, "");
  row("batch", v.batch, "");
  row("all", {v.interactive.running + v.batch.running, v.interactive.waiting + v.batch.waiting},
      Grouped(v.paused));
  add(absl::StrFormat("  %s prompt tokens queued, %s streams open", Grouped(v.queued_tokens),
                      Grouped(v.open_streams)));
  add("");
  add(absl::StrFormat("tokens/s      %s in, %s out; %s requests/s ended", Rate(v.prompt_rate),
                      Rate(v.output_rate), Rate(v.ended_rate)));
  add("");
  add(absl::StrFormat("%-17s%12s%12s", "latency", "p50", "p99"));
  add(absl::StrFormat("  %-15s%12s%12s", "first token", Seconds(v.first_token_p50),
                      Seconds(v.first_token_p99)));
  add(absl::StrFormat("  %-15s%12s%12s", "between tokens", Seconds(v.gap_p50), Seconds(v.gap_p99)));
  add("");
  add("KV pages      # used, : kept for a prefix, . free");
  const int bar = std::clamp(width - 60, 10, 60);
  for (int f = 0; f < 2; ++f) {
    const TopView::Family& kv = v.kv[f];
    if (kv.total <= 0) {
      add(absl::StrFormat("  %-12sno such layers", kFamilies[f]));
      continue;
    }
    add(absl::StrFormat("  %-12s[%s] %s + %s of %s (%s used)", kFamilies[f], Bar(kv, bar),
                        Grouped(kv.used), Grouped(kv.cached), Grouped(kv.total),
                        Percent(kv.used, kv.total)));
  }
  add(v.prefix_hits
          ? absl::StrFormat("  prefix hits %s of the prompt tokens", Percent(*v.prefix_hits, 1))
          : "  prefix hits -");
  add(absl::StrFormat("  preemptions %s (%s now), %s tokens/s computed again",
                      Grouped(v.preemptions), Grouped(v.new_preemptions), Rate(v.recomputed_rate)));
  add("");
  add(absl::StrFormat("steps         %s/s: plan %s, forward %s, sample %s", Rate(v.step_rate),
                      Seconds(v.plan_seconds), Seconds(v.forward_seconds),
                      Seconds(v.sample_seconds)));
  const auto mean = [](const std::optional<double>& value) {
    return value ? Rate(*value) : std::string("-");
  };
  add(absl::StrFormat("  a step has %s decode rows, %s tokens in all", mean(v.decode_rows),
                      mean(v.step_tokens)));
  for (std::string& line : lines) {
    if (static_cast<int>(line.size()) > width) line.resize(static_cast<size_t>(std::max(width, 0)));
  }
  return lines;
}

}  // namespace lapidary
