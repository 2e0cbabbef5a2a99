// The calls in progress: which client ids are taken, who to look after, and when all are gone.
#pragma once
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/coordinator_metrics.h"
#include "coordinator/token_stream.h"

namespace lapidary {

// Thread-safe. Never calls a stream with its lock held.
class LiveRequests {
 public:
  // ALREADY_EXISTS while another request with this id lives. Released by Release().
  absl::Status Claim(const std::string& client_id) ABSL_LOCKS_EXCLUDED(mu_);
  void Release(const std::string& client_id) ABSL_LOCKS_EXCLUDED(mu_);

  // A call is open from Add until Remove, which is later than Release: its last messages go out.
  void Add(const std::shared_ptr<TokenStream>& stream) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const std::shared_ptr<TokenStream>& stream) ABSL_LOCKS_EXCLUDED(mu_);
  int open() const ABSL_LOCKS_EXCLUDED(mu_);

  // Ends what is not read for too long.
  void Tick(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  void FailAll(const absl::Status& status, Outcome outcome, absl::Time now)
      ABSL_LOCKS_EXCLUDED(mu_);
  // True when every call has ended by then.
  bool AwaitNone(absl::Time deadline) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  std::vector<std::shared_ptr<TokenStream>> Copy() const ABSL_LOCKS_EXCLUDED(mu_);

  mutable absl::Mutex mu_;
  absl::flat_hash_set<std::string> ids_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<std::shared_ptr<TokenStream>> streams_ ABSL_GUARDED_BY(mu_);
};

}  // namespace lapidary
