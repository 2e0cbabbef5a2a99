// Text to token ids and back: Gemma's BPE over code points with byte fallback.
//
// Sources: tokenizer.json (Hugging Face), GGUF vocabularies with scores (Gemma 3, model "llama")
// and with merges (Gemma 4, model "gemma4"). Immutable and safe to share between threads.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"

namespace lapidary {

enum class TokenKind : uint8_t { kNormal, kByte, kControl, kUserDefined, kUnused };

// Control tokens are matched in text only where allowed: a rendered template's markers, never a
// user's own words.
//
// As text: control entries and the prompt syntax's own markers come out as ordinary pieces,
// whatever they spell. Runs (Gemma 3's entries for newlines, spaces, tabs, HTML tags) are found
// either way, as transformers and llama.cpp do: they are what such text is made of.
enum class SpecialTokens { kAsText, kParse };

// A part of a prompt, and whether markers are looked for in it.
struct TextSpan {
  std::string_view text;
  SpecialTokens specials = SpecialTokens::kAsText;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // From a checkpoint path (directory with tokenizer.json, or a GGUF file).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& checkpoint_path);

  // Appends the ids of `text` (valid UTF-8; an invalid byte becomes its byte token). No BOS.
  virtual void Encode(std::string_view text, SpecialTokens specials,
                      std::vector<TokenId>* ids) const = 0;

  // Appends the ids of the joined spans. Pieces merge across the edge of two spans as in any text,
  // but a marker counts only where it lies inside one span that allows it.
  // (This default, for stand-ins, encodes each span by itself.)
  virtual void EncodeSpans(const std::vector<TextSpan>& spans, std::vector<TokenId>* ids) const {
    for (const TextSpan& span : spans) Encode(span.text, span.specials, ids);
  }

  // The whole text of ids. skip_special drops control tokens. Bytes that are no character become
  // U+FFFD, one per byte; so do the pushes of IncrementalDetokenizer, which join to the same text.
  // (transformers gives up the whole characters of a run, too, when one byte in it is wrong.)
  virtual std::string Decode(const std::vector<TokenId>& ids, bool skip_special) const = 0;

  // The raw piece with U+2581 as space, byte tokens as one byte: what one id contributes.
  virtual std::string PieceText(TokenId id) const = 0;
  // The same at the end of `text`.
  virtual void AppendPieceText(TokenId id, std::string* text) const { *text += PieceText(id); }
  // The entry as stored, e.g. "<0x0A>", "▁the": what logprob tables show.
  virtual std::string_view PieceName(TokenId id) const = 0;
  virtual TokenKind kind(TokenId id) const = 0;
  virtual std::optional<TokenId> Find(std::string_view piece) const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual TokenId bos() const = 0;

  // The chat template stored beside the vocabulary (Jinja source), empty when there is none.
  virtual const std::string& chat_template() const = 0;
};

// Ids in, text out, never half a character: an incomplete UTF-8 run of byte tokens waits.
class IncrementalDetokenizer {
 public:
  IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}
  // Appends the text that became certain with this token, possibly none.
  void Push(TokenId id, std::string* text);
  std::string Push(TokenId id) {
    std::string text;
    Push(id, &text);
    return text;
  }
  // The rest, invalid bytes as U+FFFD.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  std::string pending_;  // bytes of an incomplete character
};

}  // namespace lapidary
