#include <cmath>
#include <vector>

#include "kernels/elementwise/rope.h"

namespace lapidary {

std::vector<float> RopeFrequencies(double theta, int head_dim, int rotated_pairs, double factor) {
  std::vector<float> frequency(rotated_pairs);
  for (int i = 0; i < rotated_pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    frequency[i] =
        1.0f / std::pow(static_cast<float>(theta), exponent) / static_cast<float>(factor);
  }
  return frequency;
}

}  // namespace lapidary
