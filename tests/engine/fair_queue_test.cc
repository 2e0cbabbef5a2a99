#include "engine/fair_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/request_state.h"

namespace lapidary {
namespace {

// The same rule, by searching: the waiting request whose tenant has the smallest counter (then the
// one that came first), and of its requests the oldest.
class DumbQueue {
 public:
  explicit DumbQueue(std::map<std::string, double> weights) : weights_(std::move(weights)) {}

  void Join(const std::string& tenant) {
    Tenant& joined = tenants_[tenant];
    if (joined.live++ == 0 && joined.counter <= clock_) joined = {arrivals_++, clock_, 1, {}};
  }
  void Leave(const std::string& tenant) { --tenants_[tenant].live; }
  void Push(const std::string& name, uint64_t order) {
    Tenant& tenant = tenants_[name];
    if (tenant.waiting.empty()) tenant.counter = std::max(tenant.counter, clock_);
    tenant.waiting.insert(order);
  }
  bool Remove(const std::string& name, uint64_t order) {
    return tenants_[name].waiting.erase(order) > 0;
  }
  void Charge(const std::string& name, int64_t tokens) {
    double all = 0;
    for (const auto& [other, tenant] : tenants_) all += tenant.live > 0 ? Weight(other) : 0;
    tenants_[name].counter += static_cast<double>(tokens) / Weight(name);
    clock_ += static_cast<double>(tokens) / all;
  }
  // Its tenant, or "" when nobody waits.
  std::string Front(uint64_t* order) const {
    std::string best;
    for (const auto& [name, tenant] : tenants_) {
      if (tenant.waiting.empty()) continue;
      const bool better =
          best.empty() || std::pair(tenant.counter, tenant.arrival) <
                              std::pair(tenants_.at(best).counter, tenants_.at(best).arrival);
      if (better) best = name;
    }
    if (!best.empty()) *order = *tenants_.at(best).waiting.begin();
    return best;
  }
  void Pop() {
    uint64_t order = 0;
    const std::string name = Front(&order);
    clock_ = std::max(clock_, tenants_[name].counter);
    tenants_[name].waiting.erase(order);
  }

 private:
  double Weight(const std::string& name) const {
    return weights_.contains(name) ? weights_.at(name) : 1;
  }
  struct Tenant {
    uint64_t arrival = 0;
    double counter = 0;
    int live = 0;
    std::set<uint64_t> waiting;
  };
  const std::map<std::string, double> weights_;
  std::map<std::string, Tenant> tenants_;
  double clock_ = 0;
  uint64_t arrivals_ = 0;
};

TEST(FairQueue, AgreesWithASearchOverRandomTraces) {
  // Sums of these weights are exact, in whatever order.
  const std::map<std::string, double> weights = {{"b", 2}, {"c", 0.25}, {"d", 7}};
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto pick = [&](int below) { return static_cast<int>(random() % below); };
    FairQueue queue(weights);
    DumbQueue dumb(weights);
    struct Request {
      RequestState state;
      std::string name;
      bool waits = false;
      bool live = true;
    };
    std::vector<std::unique_ptr<Request>> requests;
    for (int i = 0; i < 400; ++i) {
      const int what = pick(8);
      Request* some = requests.empty() ? nullptr : requests[pick(requests.size())].get();
      if (what < 2 || some == nullptr) {
        auto request = std::make_unique<Request>();
        request->name = std::string(1, static_cast<char>('a' + pick(5)));
        request->state.order = requests.size();
        request->state.tenant = queue.Join(request->name);
        dumb.Join(request->name);
        queue.Push(request->state.tenant, request->state.order, &request->state);
        dumb.Push(request->name, request->state.order);
        request->waits = true;
        requests.push_back(std::move(request));
      } else if (what < 4) {
        if (RequestState* front = queue.Front()) {
          requests[front->order]->waits = false;
          queue.Pop();
          dumb.Pop();
          const int tokens = 1 + pick(50);
          queue.Charge(front->tenant, tokens);
          dumb.Charge(requests[front->order]->name, tokens);
        }
      } else if (what == 4 && some->live) {  // a token was sampled
        queue.Charge(some->state.tenant, 1);
        dumb.Charge(some->name, 1);
      } else if (what == 5 && some->live && !some->waits) {  // preempted, or resumed
        queue.Push(some->state.tenant, some->state.order, &some->state);
        dumb.Push(some->name, some->state.order);
        some->waits = true;
      } else if (some->live) {  // ends, or is paused
        const bool waited = queue.Remove(some->state.tenant, some->state.order);
        ASSERT_EQ(waited, some->waits);
        ASSERT_EQ(waited, dumb.Remove(some->name, some->state.order));
        some->waits = false;
        if (what == 6) {
          queue.Leave(some->state.tenant);
          dumb.Leave(some->name);
          some->live = false;
        }
      }
      uint64_t order = 0;
      const std::string expected = dumb.Front(&order);
      RequestState* front = queue.Front();
      ASSERT_EQ(front == nullptr, expected.empty());
      if (front != nullptr) {
        ASSERT_EQ(front->order, order);
      }
      ASSERT_EQ(queue.size(), std::count_if(requests.begin(), requests.end(),
                                            [](const auto& r) { return r->waits; }));
    }
  }
}

TEST(FairQueue, SharesTokensByWeight) {
  const std::map<std::string, double> weights = {{"a", 1}, {"b", 2}, {"c", 5}};
  const std::map<std::string, int> largest = {{"a", 1000}, {"b", 10}, {"c", 100}};
  FairQueue queue(weights);
  std::mt19937 random(1);
  struct Request {
    RequestState state;
    std::string name;
  };
  std::vector<std::unique_ptr<Request>> requests;
  const auto submit = [&](const std::string& name) {
    auto request = std::make_unique<Request>();
    request->name = name;
    request->state.order = requests.size();
    request->state.tenant = queue.Join(name);
    queue.Push(request->state.tenant, request->state.order, &request->state);
    requests.push_back(std::move(request));
  };
  for (const auto& entry : weights) submit(entry.first), submit(entry.first);
  std::map<std::string, double> served;
  for (int i = 0; i < 20000; ++i) {
    const Request& front = *requests[queue.Front()->order];
    queue.Pop();
    const int tokens = 1 + static_cast<int>(random() % largest.at(front.name));
    queue.Charge(front.state.tenant, tokens);
    served[front.name] += tokens;
    submit(front.name);
    queue.Leave(front.state.tenant);
    // Two tenants that always have something waiting differ by no more than one request each.
    for (const auto& [x, wx] : weights) {
      for (const auto& [y, wy] : weights) {
        ASSERT_LE(std::abs(served[x] / wx - served[y] / wy),
                  largest.at(x) / wx + largest.at(y) / wy);
      }
    }
  }
  EXPECT_GT(served["a"], 10000);
}

TEST(FairQueue, ForgetsTenantsThatHaveNothingHere) {
  FairQueue queue({});
  RequestState request;
  for (int i = 0; i < 1000; ++i) {
    request.order = i;
    request.tenant = queue.Join("tenant " + std::to_string(i));
    queue.Push(request.tenant, request.order, &request);
    ASSERT_EQ(queue.Front(), &request);
    queue.Pop();
    queue.Charge(request.tenant, 10);
    queue.Leave(request.tenant);
  }
  EXPECT_LE(queue.tenants(), 1);
}

// Newcomers start at the clock, which moves with every token: those who wait since before them come
// in time, however many there are.
TEST(FairQueue, NewcomersKeepNobodyOut) {
  FairQueue queue({});
  queue.Join("one that runs");
  RequestState old[2], newcomers[1000];
  for (int i = 0; i < 2; ++i) {
    old[i].tenant = queue.Join("old");
    queue.Push(old[i].tenant, old[i].order = i, &old[i]);
  }
  ASSERT_EQ(queue.Front(), &old[0]);
  queue.Pop();
  queue.Charge(old[0].tenant, 100);
  int served = 0;
  for (int i = 0; i < 1000; ++i) {
    RequestState& newcomer = newcomers[i];
    newcomer.tenant = queue.Join("newcomer " + std::to_string(i));
    queue.Push(newcomer.tenant, newcomer.order = 2 + i, &newcomer);
    RequestState* front = queue.Front();
    if (front == &old[1]) break;
    queue.Pop();
    queue.Charge(front->tenant, 10);
    queue.Leave(front->tenant);
    ++served;
  }
  // The old one is at 100, the clock at half of it; then three are live, and each newcomer's 10
  // tokens move the clock by a third of them.
  EXPECT_NEAR(served, 15, 1);
}

}  // namespace
}  // namespace lapidary
