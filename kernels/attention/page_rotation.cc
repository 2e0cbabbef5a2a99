#include "kernels/attention/page_rotation.h"

#include <algorithm>
#include <utility>

#include "common/base/dtype.h"
#include "kernels/elementwise/rope.h"

namespace lapidary {

PageRotation::PageRotation(std::vector<float> frequency) : frequency_(std::move(frequency)) {
  padded_ = static_cast<int>(frequency_.size() + 15) / 16 * 16;
  frequency_.resize(padded_, 0.0f);
  for (int i = 0; i < kPageTokens; ++i) Append(i, in_page_);
}

void PageRotation::Cover(int32_t pages) {
  if (padded_ == 0) return;
  for (auto p = static_cast<int32_t>(page_begin_.size() / (2 * padded_)); p < pages; ++p) {
    Append(p * kPageTokens, page_begin_);
  }
}

void PageRotation::Append(int32_t position, std::vector<float>& table) const {
  table.resize(table.size() + 2 * padded_);
  RopeRow(position, frequency_.data(), padded_, table.data() + table.size() - 2 * padded_);
}

}  // namespace lapidary
