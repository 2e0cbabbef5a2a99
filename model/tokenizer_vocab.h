// The entries of a vocabulary: names, kinds, and the ways to look one up.
//
// Inside the tokenizer a space is a space: an entry stored as "▁the" has the text " the". U+2581 is
// three bytes for the commonest character of English, and only the file format needs it.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/base/ids.h"
#include "model/tokenizer.h"

namespace lapidary::internal {

inline constexpr TokenId kNoToken = -1;

// `text` with every U+2581 as a space.
std::string MarksToSpaces(std::string_view text);

// Filled once with Add, then Seal; constant and shared between threads from then on.
class Vocabulary {
 public:
  void Reserve(int64_t entries, int64_t bytes);
  // The next id. `name` is the entry as stored.
  void Add(std::string_view name, TokenKind kind);
  // Builds the indexes. `merge_user_defined`: entries of that kind may also be the result of a
  // merge (tokenizer.json, where runs of spaces are both); else they are only matched whole.
  void Seal(bool merge_user_defined);

  int64_t size() const { return static_cast<int64_t>(kinds_.size()); }
  bool Has(TokenId id) const { return id >= 0 && id < size(); }
  // For ids that Has() accepts.
  std::string_view name(TokenId id) const { return Slice(names_, name_ends_, id); }
  std::string_view text(TokenId id) const { return Slice(texts_, text_ends_, id); }
  TokenKind kind(TokenId id) const { return kinds_[id]; }

  std::optional<TokenId> Find(std::string_view name) const;
  // The entry that merging may produce with this text; kNoToken if there is none. Control and byte
  // entries are never found: the letters of "<bos>" cannot grow into the token.
  TokenId FindMergeable(std::string_view text) const {
    const auto found = mergeable_.find(absl::string_view(text.data(), text.size()));
    return found == mergeable_.end() ? kNoToken : found->second;
  }
  TokenId byte_token(uint8_t byte) const { return byte_tokens_[byte]; }
  // Bytes of the longest mergeable entry's text.
  size_t longest_mergeable() const { return longest_mergeable_; }

 private:
  static std::string_view Slice(const std::string& arena, const std::vector<uint32_t>& ends,
                                TokenId id) {
    const uint32_t begin = id == 0 ? 0 : ends[id - 1];
    return std::string_view(arena).substr(begin, ends[id] - begin);
  }

  std::string names_, texts_;                                  // all entries, end to end
  std::vector<uint32_t> name_ends_, text_ends_;                // [size]
  std::vector<TokenKind> kinds_;                               // [size]
  absl::flat_hash_map<absl::string_view, TokenId> mergeable_;  // by text
  absl::flat_hash_map<absl::string_view, TokenId> others_;     // by name: whatever is not above
  std::array<TokenId, 256> byte_tokens_;
  size_t longest_mergeable_ = 0;
};

}  // namespace lapidary::internal
