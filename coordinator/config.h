// Everything a coordinator can be told. Flags fill it (cli/); components get it by const&.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace lapidary {

// Of a tenant's name, in requests and here.
inline constexpr size_t kMaxTenantBytes = 128;

struct CoordinatorConfig {
  // Where it listens, HOST:PORT; port 0 takes any free one. Anything but loopback needs `insecure`.
  std::string listen = "127.0.0.1:50051";          // clients: lapidary.v1, health, reflection
  std::string worker_listen = "127.0.0.1:50052";   // workers: lapidary.cluster.v1
  std::string metrics_listen = "127.0.0.1:50053";  // HTTP: /metrics, /livez, /readyz
  bool insecure = false;  // allows plain text on other than loopback addresses

  // What it serves.
  std::string model_path;         // directory or GGUF file, as coordinator and workers see it
  std::string served_model_name;  // empty: the path's last part
  std::string compute = "auto";   // fp32, bf16, int8, fp8; auto: the device's best for the file
  std::string arith = "auto";     // auto, or an arithmetic's name: resolved by the leader
  int tensor_parallel = 1;        // ranks of the group, 1 to 64

  // Limits of the engine, told to the workers.
  int64_t max_context = 0;    // tokens of prompt and output; 0: the model's, as far as KV holds it
  int max_running = 64;       // sequences computed together
  int max_step_tokens = 512;  // token budget of a step
  int max_queued = 4096;      // requests waiting in the engine; beyond: RESOURCE_EXHAUSTED
  int64_t max_queued_tokens = 0;   // tokens of those requests; 0: not limited
  int64_t kv_bytes = 0;            // per rank, both families; 0: what the device has left
  std::string kv_format = "auto";  // pages of global K=V layers: auto, split, folded, single
  std::string kv_type = "auto";    // numbers in the KV pages: auto, int8 (CPU), bf16, fp8 (GPU)
  bool prefix_cache = true;        // keeps prompt prefixes for later requests
  int max_in_flight = 0;           // steps submitted and not completed, 1 or 2; 0: the worker's
  absl::Duration step_time_target = absl::ZeroDuration();  // prompt chunks are cut for it; 0: off
  std::map<std::string, double> tenant_weights;  // shares by tenant, above 0; 1 if not named

  // Limits of the service.
  int64_t max_request_bytes = 4LL << 20;  // of one client message
  int64_t slow_reader_bytes = 1LL << 20;  // queued for one client: above, its request is paused
                                          // until it has read half
  absl::Duration slow_reader_timeout = absl::Seconds(30);  // reading nothing for so long: cancelled
  absl::Duration worker_connect_timeout = absl::Minutes(1);  // then missing workers are an error
  absl::Duration worker_keepalive = absl::Seconds(10);  // a rank silent for twice this is lost;
                                                        // gRPC pings no faster than once a second
  absl::Duration drain_timeout = absl::Minutes(5);  // streams still open then end with UNAVAILABLE
  absl::Duration retry_delay = absl::Seconds(1);  // what RetryInfo advises, unless the engine knows

  bool reflection = true;
  bool compat_metrics = true;  // also the vllm:* names that routers and dashboards read

  // INVALID_ARGUMENT with every problem, one a line; OK when it can be started.
  absl::Status Validate() const;
  // served_model_name, or its default.
  std::string ServedName() const;
};

}  // namespace lapidary
