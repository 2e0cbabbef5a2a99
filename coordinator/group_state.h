// What a coordinator knows about a group: for probes, metrics, messages and the start-up progress.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace lapidary {

// What the leader computed between two of its messages.
struct StepWork {
  uint64_t steps = 0;   // 0: nothing
  uint64_t tokens = 0;  // of all of them, as the seconds are
  double plan_seconds = 0, forward_seconds = 0, sample_seconds = 0;
};

enum class GroupPhase {
  kWaiting,  // for workers to connect
  kLoading,  // all connected and assigned, weights on the way
  kReady,
  kDraining,
};

struct GroupState {
  GroupPhase phase = GroupPhase::kWaiting;
  uint64_t epoch = 0;         // of the current or the last group; 0 before the first
  int size = 1;               // ranks wanted
  int connected = 0;          // workers registered
  std::vector<int> missing;   // ranks nobody is, while waiting; empty where hints do not tell
  std::vector<bool> rank_up;  // by rank, once assigned
  int64_t loaded_bytes = 0, total_bytes = 0;  // summed over ranks, while loading
  std::string last_failure;  // why the last epoch ended or workers are overdue; empty: no failure

  // Once ready; bytes are sums over ranks, pages are each rank's.
  int64_t weights_bytes = 0, kv_bytes = 0, workspace_bytes = 0;
  int64_t sliding_pages = 0, global_pages = 0;
  int64_t max_context = 0;
  std::string arith, compute;

  // The leader's latest numbers.
  int64_t waiting = 0, running = 0, waiting_tokens = 0;
  int64_t waiting_batch = 0, running_batch = 0;  // of them, batch work
  int64_t sliding_pages_used = 0, global_pages_used = 0;
  int64_t sliding_pages_cached = 0, global_pages_cached = 0;
  // Since the epoch began.
  uint64_t preemptions = 0, recomputed_tokens = 0;
  uint64_t steps = 0, decode_rows = 0, prefill_tokens = 0;
  uint64_t prefix_lookup_tokens = 0, prefix_hit_tokens = 0, prefix_evicted_pages = 0;
  double plan_seconds = 0, forward_seconds = 0, sample_seconds = 0;

  bool ready() const { return phase == GroupPhase::kReady; }
  // One line for people: "1 of 2 workers connected".
  std::string Describe() const;
};

}  // namespace lapidary
