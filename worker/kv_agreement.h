// How many KV pages each rank of a group gets: the least any of them can hold. Ranks hold different
// numbers of kv heads, and a page id means the same page on all of them.
#pragma once
#include "absl/status/statusor.h"
#include "engine/kv_budget.h"
#include "worker/comm/communicator.h"
#include "worker/stream.h"

namespace lapidary {

// Every rank calls it with its own page sizes. All get the same answer, or all an error that says
// which rank could not and why.
absl::StatusOr<KvBudget> AgreeOnKv(const KvBudgetInput& own, Communicator& comm, Stream& stream);

// All get OK, or an error that names the ranks that failed and the first one's reason.
absl::Status AgreeOnStatus(const absl::Status& own, Communicator& comm, Stream& stream);

}  // namespace lapidary
