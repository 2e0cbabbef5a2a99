#include "coordinator/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace lapidary {

StopMatcher::Result StopMatcher::Push(std::string_view piece) {
  Result result;
  held_ += piece;
  size_t match_begin = 0, match_end = std::string::npos;
  for (size_t i = 0; i < stops_.size(); ++i) {
    const size_t begin = held_.find(stops_[i]);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stops_[i].size();
    if (end < match_end || (end == match_end && begin < match_begin)) {
      match_begin = begin;
      match_end = end;
      result.stop = static_cast<int>(i);
    }
  }
  if (result.stop >= 0) {
    result.text = held_.substr(0, include_stop_ ? match_end : match_begin);
    held_.clear();
    return result;
  }
  // The longest suffix that could grow into a stop waits.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(held_.size(), stop.size() - 1); n > keep; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) {
        keep = n;
        break;
      }
    }
  }
  result.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return result;
}

std::string StopMatcher::Flush() { return std::exchange(held_, std::string()); }

}  // namespace lapidary
