#include "model/tokenizer.h"

#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/gguf_file.h"
#include "model/tokenizer_parts.h"
#include "model/tokenizer_utf8.h"

namespace lapidary {
namespace {

using internal::kNoToken;
using internal::TokenizerParts;
using internal::TokenMatcher;

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerParts parts)
      : parts_(std::move(parts)), as_text_(parts_.runs), markers_(parts_.markers) {}

  void Encode(std::string_view text, SpecialTokens specials,
              std::vector<TokenId>* ids) const override {
    EncodeMarked(text, {{text.size(), specials}}, ids);
  }

  void EncodeSpans(const std::vector<TextSpan>& spans, std::vector<TokenId>* ids) const override {
    std::string text;
    std::vector<Stretch> stretches;
    for (const TextSpan& span : spans) {
      text += span.text;
      stretches.push_back({text.size(), span.specials});
    }
    EncodeMarked(text, stretches, ids);
  }

  std::string Decode(const std::vector<TokenId>& ids, bool skip_special) const override {
    IncrementalDetokenizer detokenizer(*this, skip_special);
    std::string text;
    for (const TokenId id : ids) text += detokenizer.Push(id);
    return text + detokenizer.Finish();
  }

  std::string PieceText(TokenId id) const override {
    return parts_.vocab->Has(id) ? std::string(parts_.vocab->text(id)) : std::string();
  }
  void AppendPieceText(TokenId id, std::string* text) const override {
    if (parts_.vocab->Has(id)) *text += parts_.vocab->text(id);
  }
  std::string_view PieceName(TokenId id) const override {
    return parts_.vocab->Has(id) ? parts_.vocab->name(id) : std::string_view();
  }
  TokenKind kind(TokenId id) const override {
    return parts_.vocab->Has(id) ? parts_.vocab->kind(id) : TokenKind::kUnused;
  }
  std::optional<TokenId> Find(std::string_view piece) const override {
    return parts_.vocab->Find(piece);
  }
  int64_t vocab_size() const override { return parts_.vocab->size(); }
  TokenId bos() const override { return parts_.bos; }
  const std::string& chat_template() const override { return parts_.chat_template; }

 private:
  // Text up to `end` in which markers count, or do not.
  struct Stretch {
    size_t end;
    SpecialTokens specials;
  };

  void EncodeMarked(std::string_view text, const std::vector<Stretch>& stretches,
                    std::vector<TokenId>* ids) const {
    size_t begin = 0;  // of what lies between two matches
    size_t stretch = 0;
    for (size_t at = 0; at < text.size();) {
      while (at >= stretches[stretch].end) ++stretch;
      TokenId id = kNoToken;
      size_t length = as_text_.Match(text, at, &id);
      if (stretches[stretch].specials == SpecialTokens::kParse) {
        TokenId marker = kNoToken;
        const size_t marker_length =
            markers_.Match(text.substr(0, stretches[stretch].end), at, &marker);
        if (marker_length > length) {
          length = marker_length;
          id = marker;
        }
      }
      if (length == 0) {
        ++at;
        continue;
      }
      EncodeBetween(text.substr(begin, at - begin), ids);
      ids->push_back(id);
      at += length;
      begin = at;
    }
    EncodeBetween(text.substr(begin), ids);
  }

  // Text without entries to match. A U+2581 typed by a user is what a space becomes, as everywhere.
  void EncodeBetween(std::string_view text, std::vector<TokenId>* ids) const {
    if (text.find(internal::kSpaceMark) == std::string_view::npos) {
      parts_.bpe->Encode(text, ids);
    } else {
      parts_.bpe->Encode(internal::MarksToSpaces(text), ids);
    }
  }

  const TokenizerParts parts_;
  const TokenMatcher as_text_;  // runs
  const TokenMatcher markers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& checkpoint_path) {
  std::error_code error;
  const std::filesystem::path path(checkpoint_path);
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrFormat("no such checkpoint: %s", checkpoint_path));
  }
  TokenizerParts parts;
  if (std::filesystem::is_directory(path, error)) {
    ASSIGN_OR_RETURN(parts, internal::ReadTokenizerJson(checkpoint_path));
  } else if (path.filename() == "tokenizer.json") {
    const std::filesystem::path parent = path.parent_path();
    ASSIGN_OR_RETURN(parts, internal::ReadTokenizerJson(parent.empty() ? "." : parent.string()));
  } else if (GgufFile::HasMagic(checkpoint_path)) {
    ASSIGN_OR_RETURN(parts, internal::ReadGgufTokenizer(checkpoint_path));
  } else {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s is neither a directory with a tokenizer.json nor a GGUF file", checkpoint_path));
  }
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

void IncrementalDetokenizer::Push(TokenId id, std::string* text) {
  const TokenKind kind = tokenizer_.kind(id);
  if (skip_special_ && kind == TokenKind::kControl) return;
  if (kind != TokenKind::kByte) {
    if (!pending_.empty()) *text += Finish();
    tokenizer_.AppendPieceText(id, text);
    return;
  }
  tokenizer_.AppendPieceText(id, &pending_);
  while (!pending_.empty()) {
    const int length = internal::Utf8Length(pending_);
    if (length == internal::kUtf8Truncated) break;
    if (length == internal::kUtf8Invalid) {
      *text += internal::kReplacementCharacter;
      pending_.erase(0, 1);
    } else {
      text->append(pending_, 0, length);
      pending_.erase(0, length);
    }
  }
}

std::string IncrementalDetokenizer::Finish() {
  std::string rest;
  for (size_t i = 0; i < pending_.size(); ++i) rest += internal::kReplacementCharacter;
  pending_.clear();
  return rest;
}

}  // namespace lapidary
