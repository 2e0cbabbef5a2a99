#include "cli/bench/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

using Json = nlohmann::ordered_json;

Json Milliseconds(const std::vector<float>& seconds) {
  const Distribution d = Summarise(seconds);
  if (d.count == 0) return nullptr;
  return {{"mean", d.mean * 1e3}, {"min", d.min * 1e3}, {"p50", d.p50 * 1e3}, {"p90", d.p90 * 1e3},
          {"p99", d.p99 * 1e3},   {"max", d.max * 1e3}, {"count", d.count}};
}

double PerSecond(int64_t count, const Tally& tally) {
  const double seconds = tally.Seconds();
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

std::string Row(const char* name, const std::vector<float>& seconds) {
  const Distribution d = Summarise(seconds);
  if (d.count == 0) return absl::StrFormat("%-16s %10s\n", name, "-");
  return absl::StrFormat("%-16s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, d.mean * 1e3,
                         d.p50 * 1e3, d.p90 * 1e3, d.p99 * 1e3, d.max * 1e3);
}

std::string LoadWords(const LoadOptions& load) {
  return load.rate > 0 ? absl::StrFormat("Poisson arrivals, %g a second", load.rate)
                       : absl::StrFormat("closed loop, %d streams", load.concurrency);
}

std::string PrefixWords(const WorkloadOptions& workload) {
  if (workload.shared_prefix_tokens == 0) return "";
  return absl::StrFormat(" + one of %d shared prefixes of %d", workload.prefix_groups,
                         workload.shared_prefix_tokens);
}

}  // namespace

std::string ReportJson(const BenchReport& report) {
  const Tally& t = report.result.tally;
  const WorkloadOptions& w = report.workload;
  Json out;
  out["target"] = {{"kind", report.kind}, {"address", report.address}, {"model", report.model}};
  out["workload"] = {
      {"arrivals", report.load.rate > 0 ? "poisson" : "closed"},
      {"rate", report.load.rate > 0 ? Json(report.load.rate) : Json(nullptr)},
      {"concurrency", report.load.rate > 0 ? Json(nullptr) : Json(report.load.concurrency)},
      {"seed", w.seed},
      {"prompt_tokens", w.prompt_tokens.ToString()},
      {"output_tokens", w.output_tokens.ToString()},
      {"shared_prefix_tokens", w.shared_prefix_tokens},
      {"prefix_groups", w.prefix_groups},
      {"prompts", w.text.empty() ? "random" : "text"},
      {"ignore_eos", report.ask.ignore_eos},
      {"temperature", report.ask.temperature}};
  out["requests"] = {{"sent", report.result.sent}, {"good", t.good}, {"failed", t.failed}};
  out["errors"] = Json(t.errors);
  out["error_examples"] = Json(t.examples);
  out["complete"] = report.result.status.ok();
  out["duration_s"] = t.Seconds();
  out["tokens"] = {{"prompt", t.prompt_tokens},
                   {"cached_prompt", t.cached_tokens},
                   {"output", t.output_tokens},
                   {"messages", t.messages},
                   {"counted", t.exact_counts ? "by the server" : "one a message"}};
  out["throughput"] = {{"output_tokens_per_s", PerSecond(t.output_tokens, t)},
                       {"total_tokens_per_s", PerSecond(t.prompt_tokens + t.output_tokens, t)},
                       {"requests_per_s", PerSecond(t.good, t)}};
  out["ttft_ms"] = Milliseconds(t.first_token);
  out["token_gap_ms"] = Milliseconds(t.token_gap);
  out["message_gap_ms"] = Milliseconds(t.message_gap);
  out["time_per_token_ms"] = Milliseconds(t.per_token);
  out["latency_ms"] = Milliseconds(t.latency);
  out["verify"] = report.verified ? Json{{"checked", report.verification.checked},
                                         {"different", report.verification.different},
                                         {"failed", report.verification.failed}}
                                  : Json(nullptr);
  out["client_cpu_s"] = report.client_cpu_s;
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ReportTable(const BenchReport& report) {
  const Tally& t = report.result.tally;
  std::string out = absl::StrFormat(
      "%s at %s, model %s\n%s; prompts %s tokens%s, answers %s tokens, seed %d\n\n",
      report.kind == "lapidary" ? "Lapidary (gRPC)" : "OpenAI-compatible server (HTTP)",
      report.address, report.model, LoadWords(report.load),
      report.workload.prompt_tokens.ToString(), PrefixWords(report.workload),
      report.workload.output_tokens.ToString(), report.workload.seed);
  absl::StrAppendFormat(&out, "%-16s %d good, %d failed, in %.2f s\n", "requests", t.good, t.failed,
                        t.Seconds());
  absl::StrAppendFormat(&out, "%-16s %d in prompts (%d of them cached), %d out in %d messages%s\n",
                        "tokens", t.prompt_tokens, t.cached_tokens, t.output_tokens, t.messages,
                        t.exact_counts ? "" : ", not counted by the server");
  absl::StrAppendFormat(&out, "%-16s %.1f output tok/s, %.1f with prompts, %.2f requests/s\n\n",
                        "throughput", PerSecond(t.output_tokens, t),
                        PerSecond(t.prompt_tokens + t.output_tokens, t), PerSecond(t.good, t));
  absl::StrAppendFormat(&out, "%-16s %10s %10s %10s %10s %10s\n", "milliseconds", "mean", "p50",
                        "p90", "p99", "max");
  out += Row("first token", t.first_token);
  out += Row("token gap", t.token_gap);
  // Where messages bring several tokens, which then share its gap, the waits themselves as well.
  if (t.messages != t.output_tokens) out += Row("message gap", t.message_gap);
  out += Row("time per token", t.per_token);
  out += Row("latency", t.latency);
  out += "\n";
  if (report.verified) {
    absl::StrAppendFormat(&out, "%-16s %d answers asked for again alone: %d different, %d failed\n",
                          "verified", report.verification.checked, report.verification.different,
                          report.verification.failed);
  }
  if (t.Seconds() > 0) {
    absl::StrAppendFormat(&out, "%-16s %.0f%% of one core\n", "this client",
                          100 * report.client_cpu_s / t.Seconds());
  }
  for (const auto& error : t.errors) {
    absl::StrAppendFormat(&out, "%-16s %d x %s; the first: %s\n", "failed", error.second,
                          error.first, t.examples.at(error.first));
  }
  return out;
}

std::string ReportProblem(const BenchReport& report) {
  const Tally& t = report.result.tally;
  const Verification& v = report.verification;
  if (!report.result.status.ok()) return std::string(report.result.status.message());
  if (t.failed > 0) {
    const auto& first = *t.examples.begin();
    return absl::StrFormat("%d of %d requests failed (%s: %s)", t.failed, t.failed + t.good,
                           first.first, first.second);
  }
  if (t.good == 0) return "no request was sent";
  if (v.different + v.failed > 0) {
    return absl::StrFormat("%d of %d answers are not the same alone (%s)", v.different + v.failed,
                           v.checked, v.example);
  }
  return "";
}

std::string ProgressLine(const LoadProgress& now, const LoadOptions& options) {
  constexpr int kWidth = 20;
  const int64_t ended = now.good + now.failed;
  double share = 0;
  if (options.requests > 0) {
    share = static_cast<double>(ended) / static_cast<double>(options.requests);
  }
  if (options.duration_s > 0) share = std::max(share, now.seconds / options.duration_s);
  const int filled = static_cast<int>(std::min(share, 1.0) * kWidth);
  const std::string count = options.requests > 0 ? absl::StrFormat("%d/%d", ended, options.requests)
                                                 : absl::StrFormat("%d", ended);
  return absl::StrFormat(
             "[%s%s] %s done, %d in flight, %.0f tok/s, %d failed", std::string(filled, '#'),
             std::string(kWidth - filled, '.'), count, now.in_flight,
             now.seconds > 0 ? static_cast<double>(now.tokens) / now.seconds : 0.0, now.failed)
      .substr(0, 79);
}

}  // namespace lapidary
