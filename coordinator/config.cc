#include "coordinator/config.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/listen_address.h"

namespace lapidary {

absl::Status CoordinatorConfig::Validate() const {
  std::vector<std::string> problems;
  const auto require = [&](bool ok, std::string problem) {
    if (!ok) problems.push_back(std::move(problem));
  };
  const auto check_address = [&](const char* name, const std::string& text) {
    const auto address = ParseListenAddress(text);
    if (!address.ok()) {
      problems.push_back(absl::StrFormat("%s: %s", name, address.status().message()));
    } else if (!address->loopback() && !insecure) {
      problems.push_back(absl::StrFormat(
          "%s: %s can be reached from other machines without encryption or keys; say --insecure if "
          "the network is trusted",
          name, text));
    }
  };
  check_address("listen", listen);
  check_address("worker_listen", worker_listen);
  check_address("metrics_listen", metrics_listen);
  require(!model_path.empty(), "model_path: no model given");
  require(compute == "auto" || compute == "fp32" || compute == "bf16" || compute == "int8" ||
              compute == "fp8",
          absl::StrFormat("compute: '%s' is not auto, fp32, bf16, int8 or fp8", compute));
  require(!arith.empty(), "arith: empty; 'auto' lets the leader choose");
  const auto in_range = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    require(value >= low && value <= high,
            absl::StrFormat("%s: %d is outside %d to %d", name, value, low, high));
  };
  in_range("tensor_parallel", tensor_parallel, 1, 64);
  in_range("max_context", max_context, 0, 1 << 24);
  in_range("max_running", max_running, 1, 1 << 16);
  in_range("max_step_tokens", max_step_tokens, 1, 1 << 20);
  in_range("max_queued", max_queued, 0, 1 << 24);
  in_range("max_queued_tokens", max_queued_tokens, 0, 1LL << 40);
  in_range("max_in_flight", max_in_flight, 0, 2);
  require(
      kv_format == "auto" || kv_format == "split" || kv_format == "folded" || kv_format == "single",
      absl::StrFormat("kv_format: '%s' is not auto, split, folded or single", kv_format));
  require(kv_type == "auto" || kv_type == "int8" || kv_type == "bf16" || kv_type == "fp8",
          absl::StrFormat("kv_type: '%s' is not auto, int8, bf16 or fp8", kv_type));
  require(step_time_target >= absl::ZeroDuration() && step_time_target <= absl::Hours(1),
          absl::StrFormat("step_time_target: %s is outside 0 to 1h",
                          absl::FormatDuration(step_time_target)));
  for (const auto& [tenant, weight] : tenant_weights) {
    require(tenant.size() <= kMaxTenantBytes,
            absl::StrFormat("tenant_weights: the name '%s...' has %d bytes, the limit is %d",
                            tenant.substr(0, 16), tenant.size(), kMaxTenantBytes));
    require(std::isfinite(weight) && weight > 0,
            absl::StrFormat("tenant_weights: %g of '%s' is not a number above 0", weight, tenant));
  }
  require(kv_bytes >= 0, absl::StrFormat("kv_bytes: %d is below 0", kv_bytes));
  in_range("max_request_bytes", max_request_bytes, 1024, 1LL << 30);
  in_range("slow_reader_bytes", slow_reader_bytes, 1024, 1LL << 32);
  const auto positive = [&](const char* name, absl::Duration d) {
    require(d > absl::ZeroDuration(), absl::StrFormat("%s: not above 0", name));
  };
  positive("slow_reader_timeout", slow_reader_timeout);
  positive("worker_connect_timeout", worker_connect_timeout);
  positive("worker_keepalive", worker_keepalive);
  positive("drain_timeout", drain_timeout);
  positive("retry_delay", retry_delay);
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
}

std::string CoordinatorConfig::ServedName() const {
  if (!served_model_name.empty()) return served_model_name;
  std::string name = model_path;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  name = name.substr(name.rfind('/') + 1);  // npos + 1 == 0: the whole path
  const std::string suffix = ".gguf";
  if (name.size() > suffix.size() &&
      name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0) {
    name.resize(name.size() - suffix.size());
  }
  return name;
}

}  // namespace lapidary
