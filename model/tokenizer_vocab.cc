#include "model/tokenizer_vocab.h"

#include <simdjson.h>

#include <algorithm>
#include <charconv>

#include "model/tokenizer_utf8.h"

namespace lapidary::internal {
namespace {

// The byte of an entry named "<0x0A>"; nullopt for any other name.
std::optional<uint8_t> ByteOfName(std::string_view name) {
  if (name.size() != 6 || name.substr(0, 3) != "<0x" || name.back() != '>') return std::nullopt;
  uint8_t byte = 0;
  const char* end = name.data() + 5;
  const auto parsed = std::from_chars(name.data() + 3, end, byte, 16);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return byte;
}

absl::string_view View(std::string_view text) {
  return absl::string_view(text.data(), text.size());
}

}  // namespace

std::string MarksToSpaces(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t mark = text.find(kSpaceMark, at);
    out.append(text, at, mark == std::string_view::npos ? mark : mark - at);
    if (mark == std::string_view::npos) break;
    out.push_back(' ');
    at = mark + kSpaceMark.size();
  }
  return out;
}

void Vocabulary::Reserve(int64_t entries, int64_t bytes) {
  names_.reserve(bytes);
  texts_.reserve(bytes);
  name_ends_.reserve(entries);
  text_ends_.reserve(entries);
  kinds_.reserve(entries);
}

void Vocabulary::Add(std::string_view name, TokenKind kind) {
  if (kind == TokenKind::kByte && !ByteOfName(name)) kind = TokenKind::kUnused;
  names_.append(name);
  if (kind == TokenKind::kByte) {
    texts_.push_back(static_cast<char>(*ByteOfName(name)));
  } else if (!simdjson::validate_utf8(name.data(), name.size())) {
    // Whatever a file holds, the text that we produce stays valid UTF-8.
    for (size_t i = 0; i < name.size(); ++i) texts_.append(kReplacementCharacter);
  } else {
    texts_.append(MarksToSpaces(name));
  }
  name_ends_.push_back(static_cast<uint32_t>(names_.size()));
  text_ends_.push_back(static_cast<uint32_t>(texts_.size()));
  kinds_.push_back(kind);
}

void Vocabulary::Seal(bool merge_user_defined) {
  byte_tokens_.fill(kNoToken);
  mergeable_.reserve(kinds_.size());
  for (TokenId id = 0; id < size(); ++id) {
    const TokenKind kind = kinds_[id];
    if (kind == TokenKind::kByte) byte_tokens_[static_cast<uint8_t>(text(id)[0])] = id;
    const bool mergeable =
        kind == TokenKind::kNormal || (kind == TokenKind::kUserDefined && merge_user_defined);
    // A name with a plain space cannot come from a merge: text has none left by then.
    if (mergeable && !text(id).empty() && name(id).find(' ') == std::string_view::npos) {
      mergeable_.emplace(View(text(id)), id);
      longest_mergeable_ = std::max(longest_mergeable_, text(id).size());
    } else if (!name(id).empty()) {
      others_.emplace(View(name(id)), id);
    }
  }
}

std::optional<TokenId> Vocabulary::Find(std::string_view name_to_find) const {
  const TokenId id = FindMergeable(MarksToSpaces(name_to_find));
  if (id != kNoToken && name(id) == name_to_find) return id;
  const auto found = others_.find(View(name_to_find));
  if (found == others_.end()) return std::nullopt;
  return found->second;
}

}  // namespace lapidary::internal
