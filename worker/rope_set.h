// The rotations of a model: which layers turn alike.
#pragma once
#include <vector>

#include "model/model_spec.h"

namespace lapidary {

// The rotations that a model's layers use; sliding and global layers usually differ.
class RopeSet {
 public:
  // Index of the table for a layer.
  int Add(const LayerSpec& layer);

  struct Entry {
    RopeSpec spec;
    int head_dim = 0;
    std::vector<float> frequency;  // [pairs]
    int pairs() const { return static_cast<int>(frequency.size()); }
  };
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

}  // namespace lapidary
