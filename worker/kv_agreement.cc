#include "worker/kv_agreement.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

// What one rank says: plain bytes, the same layout on all.
struct Offer {
  int32_t code = 0;  // of the status
  int32_t pages[kKvFamilies] = {};
  int32_t max_context = 0;
  int32_t full_sequences = 0;
  char reason[300] = {};
};

absl::StatusOr<std::vector<Offer>> Gather(const absl::Status& own_status, Offer own,
                                          Communicator& comm, Stream& stream) {
  own.code = static_cast<int32_t>(own_status.code());
  own_status.message().copy(own.reason, sizeof own.reason - 1);
  std::vector<Offer> all(comm.size());
  comm.AllGather(&own, sizeof own, all.data(), stream);
  RETURN_IF_ERROR(stream.Synchronize());
  for (int r = 0; r < comm.size(); ++r) {
    if (all[r].code == 0) continue;
    return absl::Status(static_cast<absl::StatusCode>(all[r].code),
                        absl::StrFormat("rank %d: %s", r, std::string(all[r].reason)));
  }
  return all;
}

}  // namespace

absl::StatusOr<KvBudget> AgreeOnKv(const KvBudgetInput& own, Communicator& comm, Stream& stream) {
  const absl::StatusOr<KvBudget> planned = PlanKvPools(own);
  Offer offer;
  if (planned.ok()) {
    for (int f = 0; f < kKvFamilies; ++f) offer.pages[f] = planned->pages[f];
    offer.max_context = planned->max_context;
    offer.full_sequences = planned->full_sequences;
  }
  ASSIGN_OR_RETURN(const std::vector<Offer> all, Gather(planned.status(), offer, comm, stream));
  KvBudget agreed = *planned;
  agreed.bytes = 0;
  for (const Offer& o : all) {
    for (int f = 0; f < kKvFamilies; ++f) {
      agreed.pages[f] = std::min(agreed.pages[f], o.pages[f]);
    }
    agreed.max_context = std::min(agreed.max_context, o.max_context);
    agreed.full_sequences = std::min(agreed.full_sequences, o.full_sequences);
  }
  for (int f = 0; f < kKvFamilies; ++f) agreed.bytes += agreed.pages[f] * own.page_bytes[f];
  return agreed;
}

absl::Status AgreeOnStatus(const absl::Status& own, Communicator& comm, Stream& stream) {
  return Gather(own, Offer{}, comm, stream).status();
}

}  // namespace lapidary
