#include "coordinator/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace lapidary {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {
  for (const std::string& stop : stops_) first_bytes_.set(static_cast<unsigned char>(stop[0]));
}

int StopMatcher::Push(std::string_view piece, std::string* text) {
  if (held_.empty() && std::none_of(piece.begin(), piece.end(), [this](char c) {
        return first_bytes_[static_cast<unsigned char>(c)];
      })) {
    *text += piece;
    return -1;
  }
  held_ += piece;
  int found = -1;
  size_t match_begin = 0, match_end = std::string::npos;
  for (size_t i = 0; i < stops_.size(); ++i) {
    const size_t begin = held_.find(stops_[i]);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stops_[i].size();
    if (end < match_end || (end == match_end && begin < match_begin)) {
      match_begin = begin;
      match_end = end;
      found = static_cast<int>(i);
    }
  }
  if (found >= 0) {
    text->append(held_, 0, include_stop_ ? match_end : match_begin);
    held_.clear();
    return found;
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
  text->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return -1;
}

std::string StopMatcher::Flush() { return std::exchange(held_, std::string()); }

}  // namespace lapidary
