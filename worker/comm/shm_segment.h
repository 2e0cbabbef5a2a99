// A piece of shared memory in which the separately started processes of a group meet by name.
//
// Rank 0 creates "/lapidary-<name>" (mode 0600) and removes the name as soon as every rank has
// attached, so nothing is left behind afterwards; the memory lives as long as someone maps it. A
// segment whose creator has died is not joined, and is replaced by the next rank 0.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lapidary {

struct ShmSegmentOptions {
  std::string name;  // unique per group, epoch and purpose; letters, digits, '-', '_', '.'
  int rank = 0;
  int size = 1;
  int64_t payload_bytes = 0;  // the same on every rank
  absl::Duration connect_timeout = absl::Seconds(30);
};

class ShmSegment {
 public:
  static constexpr int kMaxRanks = 64;

  // Creates or attaches, and returns once all ranks have attached.
  // DEADLINE_EXCEEDED names the ranks that never came, UNAVAILABLE one that died meanwhile,
  // ALREADY_EXISTS a rank given twice, RESOURCE_EXHAUSTED a full /dev/shm.
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Meet(const ShmSegmentOptions& options);
  ~ShmSegment();
  ShmSegment(const ShmSegment&) = delete;
  ShmSegment& operator=(const ShmSegment&) = delete;

  // Zeroed by its creation, aligned to 4096.
  uint8_t* payload() const;
  // By rank.
  std::vector<pid_t> pids() const;

 private:
  struct Header;
  ShmSegment(void* memory, int64_t bytes, int size) : memory_(memory), bytes_(bytes), size_(size) {}
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Create(const ShmSegmentOptions& options,
                                                            absl::Time deadline);
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Join(const ShmSegmentOptions& options,
                                                          absl::Time deadline);
  Header& header() const;
  absl::Status AwaitAll(const ShmSegmentOptions& options, absl::Time deadline);

  void* const memory_;
  const int64_t bytes_;
  const int size_;
};

}  // namespace lapidary
