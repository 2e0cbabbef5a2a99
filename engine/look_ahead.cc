#include "engine/look_ahead.h"

#include <algorithm>
#include <cmath>

namespace lapidary {

namespace {
constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);
constexpr double kSlowest = 1.0 / 64;  // weight of the newest request, once many have ended
}  // namespace

void OutputShare::Observe(int32_t generated, int32_t allowed) {
  if (allowed <= 0) return;
  const double used = std::min(static_cast<double>(generated) / allowed, 1.0);
  ++seen_;
  const double weight = std::max(1.0 / static_cast<double>(seen_), kSlowest);
  if (seen_ > 1) deviation_ += weight * (std::abs(used - mean_) - deviation_);
  mean_ += weight * (used - mean_);
}

double OutputShare::share() const {
  const double doubt = 1.0 / static_cast<double>(seen_ + 1);
  return doubt * initial_ + (1 - doubt) * std::min(mean_ + deviation_, 1.0);
}

int32_t OutputShare::ExpectedKvLen(int32_t total_len, int32_t end_len) const {
  const int32_t left = end_len - total_len;
  const auto expected = static_cast<int32_t>(std::ceil(share() * left));
  const int64_t len = int64_t{total_len} + std::max(expected, kPageTokens);
  return static_cast<int32_t>(std::min<int64_t>(len, LargestKvLen(total_len, end_len)));
}

int32_t LargestKvLen(int32_t total_len, int32_t end_len) {
  return std::max(total_len, end_len - 1);
}

void LookAhead::Add(int32_t len, int32_t end_len, int32_t sliding_held, int32_t shared_global) {
  const Future future = {end_len - len, len - shared_global * kPageTokens};
  if (sorted_ == futures_.size() && sorted_ > 0) {  // one more: keep them sorted
    futures_.insert(std::upper_bound(futures_.begin(), futures_.end(), future), future);
    ++sorted_;
  } else {
    futures_.push_back(future);
  }
  sliding_ += std::max(kv_.PagesAtLength(end_len)[kSliding], sliding_held);
}

std::array<int64_t, kKvFamilies> LookAhead::Peak() {
  if (sorted_ != futures_.size()) std::sort(futures_.begin(), futures_.end());
  sorted_ = futures_.size();
  std::array<int64_t, kKvFamilies> peak = fixed_;
  peak[kSliding] += sliding_;
  if (kv_.pool(KvFamily::kGlobal).total() == 0) return peak;

  // The need falls where somebody's pages come back, so the peak is just before such a moment:
  // those that end then hold what they hold at their end, and the others have grown until then.
  // From the latest end to the earliest, so that requests only join.
  //
  // After t steps a request holds ceil((len + t) / 16) pages. With len + 15 = 16 a + r and
  // t = 16 b + s that is a + b, and one more when r + s >= 16: sums of a, and a count of each r,
  // give the need of all at any t.
  int64_t most = 0, whole = 0;
  std::array<int32_t, kPageTokens> remainders = {};
  for (size_t begin = 0, end = 0; begin < futures_.size(); begin = end) {
    const int32_t steps = futures_[begin].steps, then = steps + lag_;
    int64_t need = whole + static_cast<int64_t>(begin) * (then / kPageTokens);
    for (int32_t r = kPageTokens - then % kPageTokens; r < kPageTokens; ++r) {
      need += remainders[r];
    }
    for (; end < futures_.size() && futures_[end].steps == steps; ++end) {
      const int32_t padded = futures_[end].len + kPageTokens - 1;
      need += PagesFor(futures_[end].len + steps);
      whole += padded / kPageTokens;
      ++remainders[padded % kPageTokens];
    }
    most = std::max(most, need);
  }
  peak[kGlobal] += most;
  return peak;
}

bool LookAhead::Fits() {
  const std::array<int64_t, kKvFamilies> peak = Peak();
  for (KvFamily family : {KvFamily::kSliding, KvFamily::kGlobal}) {
    if (peak[static_cast<int>(family)] > kv_.pool(family).total()) return false;
  }
  return true;
}

}  // namespace lapidary
