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

void LookAhead::Add(int32_t len, int32_t end_len, int32_t sliding_held) {
  const Future future = {end_len - len, len};
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

  // From the latest end to the earliest, so that requests only join. After t steps a request holds
  // ceil((len + t) / 16) pages. With len + 15 = 16 a + r and t = 16 b + s that is a + b, and one
  // more when r + s >= 16: sums of a, and a count of each r, give the need of all at any t.
  int64_t most = 0, whole = 0;
  std::array<int32_t, kPageTokens> remainders = {};
  for (size_t i = 0; i < futures_.size(); ++i) {
    const int32_t padded = futures_[i].len + kPageTokens - 1;
    whole += padded / kPageTokens;
    ++remainders[padded % kPageTokens];
    const int32_t steps = futures_[i].steps;
    if (i + 1 < futures_.size() && futures_[i + 1].steps == steps) continue;
    int64_t need = whole + static_cast<int64_t>(i + 1) * (steps / kPageTokens);
    for (int32_t r = kPageTokens - steps % kPageTokens; r < kPageTokens; ++r) {
      need += remainders[r];
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
