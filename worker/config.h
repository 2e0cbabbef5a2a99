// Everything a worker can be told. Flags fill it (cli/); the rest comes with the assignment.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace lapidary {

struct WorkerConfig {
  std::string coordinator;                     // HOST:PORT of its worker port
  int rank_hint = -1;                          // wanted rank; -1: whichever is free
  std::string device = "auto";                 // cpu, cuda, null; auto: cuda where there is a GPU
  int gpu = -1;                                // index of the device; -1: the rank
  std::string gpu_library;                     // liblapidary_cuda.so; empty: beside this program
  bool record_steps = true;                    // cuda: decode steps as CUDA graphs
  bool one_shot_all_reduce = false;            // cuda: small sums over peer memory; unproven
  absl::Duration null_step;                    // what the null device takes for a step
  int threads = 1;                             // that compute, 1 to 1024
  std::vector<int> cpus;                       // one per thread to pin it to; empty: not pinned
  int64_t memory_bytes = 0;                    // for weights, KV and workspace; 0: not limited
  std::string metrics_listen = "127.0.0.1:0";  // HTTP: /metrics, /livez, /readyz; empty: none
  pid_t parent_pid = 0;                        // ends with this process; 0: with nobody

  absl::Duration connect_timeout = absl::Seconds(60);  // to reach the coordinator
  absl::Duration meet_timeout = absl::Seconds(30);     // for the ranks of a host to meet
  absl::Duration load_timeout = absl::Hours(2);        // a rank may wait so long for another's load
  absl::Duration operation_timeout = absl::Seconds(60);  // a rank silent for so long is lost
  absl::Duration drain_timeout = absl::Minutes(5);       // then live requests get UNAVAILABLE
};

}  // namespace lapidary
