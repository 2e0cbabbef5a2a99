#include "engine/fair_queue.h"

#include <algorithm>

#include "common/base/check.h"

namespace lapidary {

class FairQueue::Tenant {
 public:
  std::string name;
  double weight = 1;
  uint64_t arrival = 0;
  double counter = 0;  // tokens served / weight
  double place = 0;    // the counter under which it stands in the line
  int32_t live = 0;    // requests that joined and have not left
  std::map<uint64_t, RequestState*> waiting;
};

FairQueue::FairQueue(const std::map<std::string, double>& weights) : weights_(weights) {
  for (const auto& entry : weights_) LAPIDARY_CHECK(entry.second > 0);
}

FairQueue::~FairQueue() = default;

FairQueue::Tenant* FairQueue::Join(const std::string& name) {
  ForgetIdle();
  std::unique_ptr<Tenant>& tenant = tenants_[name];
  if (tenant == nullptr) {
    tenant = std::make_unique<Tenant>();
    tenant->name = name;
    const auto weight = weights_.find(name);
    if (weight != weights_.end()) tenant->weight = weight->second;
    tenant->arrival = next_arrival_++;
    tenant->counter = clock_;
  }
  idle_.erase({tenant->counter, tenant->arrival});
  if (tenant->live++ == 0) {
    ++live_tenants_;
    live_weight_ += tenant->weight;
  }
  return tenant.get();
}

void FairQueue::Leave(Tenant* tenant) {
  LAPIDARY_CHECK(tenant->live > 0);
  if (--tenant->live > 0) return;
  LAPIDARY_CHECK(tenant->waiting.empty());
  live_weight_ = --live_tenants_ == 0 ? 0 : live_weight_ - tenant->weight;
  idle_[{tenant->counter, tenant->arrival}] = tenant;
  ForgetIdle();
}

// A tenant that is not ahead of the clock would start there: there is nothing to remember.
void FairQueue::ForgetIdle() {
  while (!idle_.empty() && idle_.begin()->first.first <= clock_) {
    const std::string name = idle_.begin()->second->name;
    idle_.erase(idle_.begin());
    tenants_.erase(name);
  }
}

void FairQueue::Enter(Tenant* tenant) {
  tenant->place = tenant->counter;
  line_[{tenant->place, tenant->arrival}] = tenant;
}

void FairQueue::Push(Tenant* tenant, uint64_t order, RequestState* request) {
  if (tenant->waiting.empty()) {
    tenant->counter = std::max(tenant->counter, clock_);
    Enter(tenant);
  }
  LAPIDARY_CHECK(tenant->waiting.emplace(order, request).second);
  ++size_;
}

bool FairQueue::Remove(Tenant* tenant, uint64_t order) {
  if (tenant->waiting.erase(order) == 0) return false;
  if (tenant->waiting.empty()) line_.erase({tenant->place, tenant->arrival});
  --size_;
  return true;
}

RequestState* FairQueue::Front() {
  while (!line_.empty()) {
    Tenant* tenant = line_.begin()->second;
    if (tenant->place == tenant->counter) return tenant->waiting.begin()->second;
    line_.erase(line_.begin());
    Enter(tenant);
  }
  return nullptr;
}

void FairQueue::Pop() {
  LAPIDARY_CHECK(Front() != nullptr);
  Tenant* tenant = line_.begin()->second;
  clock_ = std::max(clock_, tenant->counter);
  Remove(tenant, tenant->waiting.begin()->first);
  ForgetIdle();
}

void FairQueue::Charge(Tenant* tenant, int64_t tokens) {
  tenant->counter += static_cast<double>(tokens) / tenant->weight;
  clock_ += static_cast<double>(tokens) / live_weight_;
}

}  // namespace lapidary
