#include "model/tokenizer_matcher.h"

#include <algorithm>

namespace lapidary::internal {

TokenMatcher::TokenMatcher(std::vector<Entry> entries) : nodes_(1) {
  std::erase_if(entries, [](const Entry& entry) { return entry.text.empty(); });
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.text != b.text ? a.text < b.text : a.id < b.id;
  });
  for (const Entry& entry : entries) {
    const size_t first = static_cast<uint8_t>(entry.text[0]) * size_t{256};
    if (entry.text.size() > 1) {
      starts_.set(first + static_cast<uint8_t>(entry.text[1]));
    } else {
      for (size_t second = 0; second < 256; ++second) starts_.set(first + second);
    }
  }
  Build(entries, 0, entries.size(), 0, 0);
}

// Recursion is as deep as the longest entry; readers of vocabulary files bound that.
void TokenMatcher::Build(const std::vector<Entry>& sorted, size_t begin, size_t end, size_t depth,
                         uint32_t node) {
  while (begin < end && sorted[begin].text.size() == depth) {  // a duplicate keeps the first id
    if (nodes_[node].id < 0) nodes_[node].id = sorted[begin].id;
    ++begin;
  }
  std::vector<size_t> starts;  // where each child's entries begin
  for (size_t i = begin; i < end; ++i) {
    if (i == begin || sorted[i].text[depth] != sorted[i - 1].text[depth]) starts.push_back(i);
  }
  const auto first_edge = static_cast<uint32_t>(edges_.size());
  nodes_[node].first_child = first_edge;
  nodes_[node].children = static_cast<uint32_t>(starts.size());
  for (const size_t start : starts) {
    edges_.push_back(
        {static_cast<uint8_t>(sorted[start].text[depth]), static_cast<uint32_t>(nodes_.size())});
    nodes_.push_back({});
  }
  for (size_t i = 0; i < starts.size(); ++i) {
    const size_t child_end = i + 1 < starts.size() ? starts[i + 1] : end;
    Build(sorted, starts[i], child_end, depth + 1, edges_[first_edge + i].node);
  }
}

size_t TokenMatcher::Walk(std::string_view text, size_t at, TokenId* id) const {
  size_t longest = 0;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const Edge* begin = edges_.data() + nodes_[node].first_child;
    const Edge* end = begin + nodes_[node].children;
    const auto byte = static_cast<uint8_t>(text[i]);
    const Edge* edge = std::lower_bound(
        begin, end, byte, [](const Edge& child, uint8_t wanted) { return child.byte < wanted; });
    if (edge == end || edge->byte != byte) break;
    node = edge->node;
    if (nodes_[node].id >= 0) {
      longest = i + 1 - at;
      *id = nodes_[node].id;
    }
  }
  return longest;
}

}  // namespace lapidary::internal
