#include "worker/rope_set.h"

#include "kernels/elementwise/rope.h"

namespace lapidary {

int RopeSet::Add(const LayerSpec& layer) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& e = entries_[i];
    if (e.head_dim == layer.head_dim && e.spec.theta == layer.rope.theta &&
        e.spec.rotated_pairs == layer.rope.rotated_pairs && e.spec.factor == layer.rope.factor) {
      return static_cast<int>(i);
    }
  }
  entries_.push_back({layer.rope, layer.head_dim,
                      RopeFrequencies(layer.rope.theta, layer.head_dim, layer.rope.rotated_pairs,
                                      layer.rope.factor)});
  return static_cast<int>(entries_.size()) - 1;
}

}  // namespace lapidary
