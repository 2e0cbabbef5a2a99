// Who is next among the requests of one priority that wait: weighted fair queueing over tokens.
//
// Each tenant has a counter of the tokens it was served, divided by its weight; the tenant with the
// smallest counter is next, and within a tenant the oldest request. So tenants that always have
// something waiting are served tokens in proportion to their weights, whatever the sizes of their
// requests and however many they send.
//
// The clock is where a tenant would stand that always got its share: it moves by the tokens served,
// divided by the weights of all tenants that have a live request, and at least to the counter of
// whoever is next. A tenant of whom nothing waited starts at the clock. So being away saves nothing
// up, and newcomers, however many, do not keep those out that were here before.
//
// Ties go to the tenant that came first. The weights are positive.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

namespace lapidary {

struct RequestState;

class FairQueue {
 public:
  // One tenant, known as long as it has a live request or its counter is ahead of the clock.
  class Tenant;

  explicit FairQueue(const std::map<std::string, double>& weights);
  ~FairQueue();

  // The tenant of a new request, until Leave() for that request.
  Tenant* Join(const std::string& name);
  void Leave(Tenant* tenant);

  // Requests wait in the order of `order`, which is unique.
  void Push(Tenant* tenant, uint64_t order, RequestState* request);
  // False when it does not wait.
  bool Remove(Tenant* tenant, uint64_t order);
  // The next one; nullptr when nobody waits.
  RequestState* Front();
  // Takes it out, and moves the clock.
  void Pop();
  // The tenant was served so many tokens.
  void Charge(Tenant* tenant, int64_t tokens);

  int32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int32_t tenants() const { return static_cast<int32_t>(tenants_.size()); }

 private:
  // Counters only grow, so a place in the line that was taken before a charge is too far in front,
  // never too far behind: Front() meets it early and puts it where it belongs. A charge costs O(1).
  using Line = std::map<std::pair<double, uint64_t>, Tenant*>;  // counter, arrival of the tenant

  void Enter(Tenant* tenant);
  void ForgetIdle();

  const std::map<std::string, double> weights_;
  std::map<std::string, std::unique_ptr<Tenant>> tenants_;
  Line line_;  // tenants of whom a request waits
  Line idle_;  // tenants without a live request, whose counters are ahead of the clock
  double clock_ = 0;
  double live_weight_ = 0;  // of tenants that have a live request
  int32_t live_tenants_ = 0;
  uint64_t next_arrival_ = 0;
  int32_t size_ = 0;
};

}  // namespace lapidary
