// Registers metrics under our names and, when wanted, under vLLM's, which routers, autoscalers and
// dashboards read. For coordinator_metrics.cc alone.
#pragma once
#include <string>
#include <vector>

#include "common/metrics_registry.h"

namespace lapidary {

// Ours, then the compat one.
using Histograms = std::vector<prometheus::Histogram*>;
using Counters = std::vector<prometheus::Counter*>;
using Gauges = std::vector<prometheus::Gauge*>;

class MetricBuilder {
  // First, since its type is deduced. Registering a name again gives the same family.
  template <class B>
  auto& Family(B builder, const char* name, const char* help) const {
    return builder.Name(name).Help(help).Register(registry_);
  }

 public:
  using Bounds = prometheus::Histogram::BucketBoundaries;

  MetricBuilder(prometheus::Registry& registry, const std::string& model_name, bool compat)
      : registry_(registry),
        compat_(compat),
        ours_{{"model_name", model_name}},
        theirs_{{"model_name", model_name}, {"engine", "0"}} {}

  Histograms Histogram(const char* name, const char* compat, const char* help,
                       const Bounds& bounds) const {
    Histograms out = {&Family(prometheus::BuildHistogram(), name, help).Add(ours_, bounds)};
    if (compat_ && compat != nullptr) {
      out.push_back(&Family(prometheus::BuildHistogram(), compat, help).Add(theirs_, bounds));
    }
    return out;
  }
  Counters Counter(const char* name, const char* compat, const char* help) const {
    Counters out = {&Family(prometheus::BuildCounter(), name, help).Add(ours_)};
    if (compat_ && compat != nullptr) {
      out.push_back(&Family(prometheus::BuildCounter(), compat, help).Add(theirs_));
    }
    return out;
  }
  Gauges Gauge(const char* name, const char* compat, const char* help) const {
    Gauges out = {&Family(prometheus::BuildGauge(), name, help).Add(ours_)};
    if (compat_ && compat != nullptr) {
      out.push_back(&Family(prometheus::BuildGauge(), compat, help).Add(theirs_));
    }
    return out;
  }
  // One series for each value of a label, ours alone.
  template <class Names>
  Gauges GaugesBy(const char* key, const Names& values, const char* name, const char* help) const {
    Gauges out;
    for (const auto& value : values) {
      out.push_back(&Family(prometheus::BuildGauge(), name, help).Add(Ours(key, value)));
    }
    return out;
  }
  template <class Names>
  Counters CountersBy(const char* key, const Names& values, const char* name,
                      const char* help) const {
    Counters out;
    for (const auto& value : values) {
      out.push_back(&Family(prometheus::BuildCounter(), name, help).Add(Ours(key, value)));
    }
    return out;
  }
  template <class Names>
  Histograms HistogramsBy(const char* key, const Names& values, const char* name, const char* help,
                          const Bounds& bounds) const {
    Histograms out;
    for (const auto& value : values) {
      out.push_back(
          &Family(prometheus::BuildHistogram(), name, help).Add(Ours(key, value), bounds));
    }
    return out;
  }

  prometheus::Labels Ours(const char* key, const std::string& value) const {
    prometheus::Labels labels = ours_;
    labels[key] = value;
    return labels;
  }
  prometheus::Labels Theirs(const char* key, const std::string& value) const {
    prometheus::Labels labels = theirs_;
    labels[key] = value;
    return labels;
  }

 private:
  prometheus::Registry& registry_;
  const bool compat_;
  const prometheus::Labels ours_, theirs_;
};

inline void ObserveAll(const Histograms& histograms, double value) {
  for (prometheus::Histogram* h : histograms) Observe(*h, value);
}
inline void AddAll(const Counters& counters, double value) {
  for (prometheus::Counter* c : counters) c->Increment(value);
}
inline void SetAll(const Gauges& gauges, double value) {
  for (prometheus::Gauge* g : gauges) g->Set(value);
}

}  // namespace lapidary
