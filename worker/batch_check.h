// What every backend asks of a host batch before it uses it.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "common/base/dtype.h"
#include "worker/model_runner.h"

namespace lapidary {

struct BatchLimits {
  int64_t max_tokens = 0;
  int64_t sampled_ids = 0;                      // there are
  std::array<int32_t, kKvFamilies> pages = {};  // in the pools
  std::array<int, kKvFamilies> windows = {};    // largest of the family's layers; 0: all keys
  std::array<bool, kKvFamilies> used = {};      // the model has owning layers of the family
};

// INVALID_ARGUMENT when lengths contradict each other or positions do not ascend.
absl::Status CheckBatch(const HostBatch& host, const BatchLimits& limits);

// Appends sequence b's page table of a family to `out`, up to the last page that the step touches.
// INVALID_ARGUMENT when a page that would be read or written does not exist; pages behind the
// window may be stale and become 0.
absl::Status CopyPages(const HostBatch& host, const BatchLimits& limits, int family, int64_t b,
                       std::vector<int32_t>& out);

}  // namespace lapidary
