// The angles by which kernels turn keys of the "single" format when they read them: a token at
// position p = 16 page + place turns by place, and the query turns back by 16 page, once per page,
// so that a table over all positions is not needed.
//
// Each of the two angles is a product rounded to fp32, as is the p * frequency of the other
// formats: they differ by up to 2^-23 p * frequency, that is 2e-5 at position 200 and 0.004 at 32
// Ki for the fastest pair. (The exact angle differs from either by half of that.)
#pragma once
#include <cstdint>
#include <vector>

namespace lapidary {

class PageRotation {
 public:
  PageRotation() = default;
  // frequency [pairs], as RopeFrequencies gives it.
  explicit PageRotation(std::vector<float> frequency);

  // Extends the table to positions below 16 * pages. Moves it: no kernel may run meanwhile.
  void Cover(int32_t pages);

  // Cosines, then sines, each padded with angle 0 to whole 16s: P values each.
  int padded_pairs() const { return padded_; }
  const float* in_page() const { return in_page_.data(); }        // [16][2][P]
  const float* page_begin() const { return page_begin_.data(); }  // [pages][2][P]

 private:
  void Append(int32_t position, std::vector<float>& table) const;

  std::vector<float> frequency_;
  int padded_ = 0;
  std::vector<float> in_page_, page_begin_;
};

}  // namespace lapidary
