// Finds the entries that are matched whole in raw text (control markers, user-defined runs) before
// anything is merged: at each place the longest, from the left.
#pragma once
#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"

namespace lapidary::internal {

// A trie over bytes. Gemma 3 has 6,400 such entries, most of them "<unused...>", so that a list by
// first byte would make a text of '<' quadratic.
class TokenMatcher {
 public:
  struct Entry {
    std::string text;
    TokenId id;
  };
  explicit TokenMatcher(std::vector<Entry> entries);
  TokenMatcher() : TokenMatcher(std::vector<Entry>()) {}

  // Bytes of the longest entry at text[at], 0 for none; *id is set when found.
  size_t Match(std::string_view text, size_t at, TokenId* id) const {
    const auto first = static_cast<uint8_t>(text[at]);
    const auto second = at + 1 < text.size() ? static_cast<uint8_t>(text[at + 1]) : uint8_t{0};
    if (!starts_[first * 256 + second]) return 0;
    return Walk(text, at, id);
  }

 private:
  struct Node {
    TokenId id = -1;           // the entry that ends here
    uint32_t first_child = 0;  // children are contiguous in edges_, sorted by byte
    uint32_t children = 0;
  };
  struct Edge {
    uint8_t byte;
    uint32_t node;
  };
  size_t Walk(std::string_view text, size_t at, TokenId* id) const;
  void Build(const std::vector<Entry>& sorted, size_t begin, size_t end, size_t depth,
             uint32_t node);

  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::bitset<65536> starts_;  // by the first two bytes: may an entry begin like this
};

}  // namespace lapidary::internal
