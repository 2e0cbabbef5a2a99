// Reads the vocabulary of a GGUF file: Gemma 3's ("llama": scores) and Gemma 4's ("gemma4":
// merges).
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/gguf_file.h"
#include "model/tokenizer_parts.h"

namespace lapidary::internal {
namespace {

// Bytes of all names; keeps offsets within 32 bits even where a name grows on loading.
constexpr int64_t kLongestVocabulary = int64_t{1} << 30;

// tokenizer.ggml.token_type
TokenKind KindOf(int64_t type) {
  switch (type) {
    case 1:
      return TokenKind::kNormal;
    case 2:  // unknown
    case 3:
      return TokenKind::kControl;
    case 4:
      return TokenKind::kUserDefined;
    case 6:
      return TokenKind::kByte;
    default:
      return TokenKind::kUnused;
  }
}

// Converters store some markers of the prompt's own syntax as user-defined, so that llama.cpp
// prints them: in Gemma 4 the tool-call, tool-response and channel pairs and the string quote, in
// Gemma 3 the image pair. Matched in a user's words they would be as good as control tokens.
bool IsMarker(std::string_view name) {
  const auto begins = [&](std::string_view with) { return name.substr(0, with.size()) == with; };
  const bool closed = !name.empty() && name.back() == '>';
  return (closed &&
          (begins("<|") || (begins("<") && name.size() > 2 && name[name.size() - 2] == '|'))) ||
         name == "<start_of_image>" || name == "<end_of_image>" || name == "<image_soft_token>";
}

absl::StatusOr<std::vector<Bpe::Pair>> ReadMerges(const GgufFile& file, const std::string& path,
                                                  const Vocabulary& vocab) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> lines,
                   file.Strings("tokenizer.ggml.merges"));
  std::vector<Bpe::Pair> pairs;
  pairs.reserve(lines.size());
  std::string joined;
  for (const std::string_view line : lines) {
    const size_t space = line.find(' ', 1);
    if (line.empty() || space == std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: merge \"%s\" is not two pieces", path, line));
    }
    joined.assign(line.substr(0, space)).append(line.substr(space + 1));
    const std::optional<TokenId> ids[] = {vocab.Find(line.substr(0, space)),
                                          vocab.Find(line.substr(space + 1)), vocab.Find(joined)};
    // Seen in real files: a merge whose result is no entry. Nobody can apply it.
    if (ids[0] && ids[1] && ids[2]) pairs.push_back({*ids[0], *ids[1], *ids[2]});
  }
  return pairs;
}

}  // namespace

absl::StatusOr<TokenizerParts> ReadGgufTokenizer(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const std::string_view model, file->String("tokenizer.ggml.model"));
  const bool by_scores = model == "llama";
  if (!by_scores && model != "gemma4") {
    return absl::UnimplementedError(absl::StrFormat(
        "%s: tokenizer.ggml.model is \"%s\"; Gemma files have \"llama\" or \"gemma4\"", path,
        model));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string_view> names,
                   file->Strings("tokenizer.ggml.tokens"));
  ASSIGN_OR_RETURN(const std::vector<int64_t> types, file->Ints("tokenizer.ggml.token_type"));
  if (types.size() != names.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tokenizer.ggml.token_type has %d elements for %d tokens", path,
                        types.size(), names.size()));
  }

  TokenizerParts parts;
  parts.vocab = std::make_unique<Vocabulary>();
  int64_t bytes = 0;
  for (const std::string_view name : names) bytes += static_cast<int64_t>(name.size());
  if (bytes > kLongestVocabulary) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: the vocabulary's text is %d bytes long", path, bytes));
  }
  parts.vocab->Reserve(static_cast<int64_t>(names.size()), bytes);
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string_view name = names[i];
    if (name.size() > kLongestEntry) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: token %d is %d bytes long, the limit is %d", path, i, name.size(), kLongestEntry));
    }
    TokenKind kind = KindOf(types[i]);
    if (kind == TokenKind::kUserDefined && IsMarker(name)) kind = TokenKind::kControl;
    parts.vocab->Add(name, kind);
    if (kind == TokenKind::kControl) {
      parts.markers.push_back({std::string(name), static_cast<TokenId>(i)});
    } else if (kind == TokenKind::kUserDefined) {
      parts.runs.push_back({MarksToSpaces(name), static_cast<TokenId>(i)});
    }
  }
  parts.vocab->Seal(/*merge_user_defined=*/false);

  ASSIGN_OR_RETURN(const int64_t unknown, file->IntOr("tokenizer.ggml.unknown_token_id", -1));
  const TokenId unknown_id =
      unknown >= 0 && unknown < parts.vocab->size() ? static_cast<TokenId>(unknown) : kNoToken;
  if (by_scores) {
    ASSIGN_OR_RETURN(const std::vector<float> scores, file->Floats("tokenizer.ggml.scores"));
    if (scores.size() != names.size()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: tokenizer.ggml.scores has %d elements for %d tokens", path,
                          scores.size(), names.size()));
    }
    for (size_t i = 0; i < scores.size(); ++i) {
      if (std::isnan(scores[i])) {
        return absl::InvalidArgumentError(
            absl::StrFormat("%s: the score of token %d is not a number", path, i));
      }
    }
    parts.bpe = std::make_unique<Bpe>(*parts.vocab, scores, unknown_id);
  } else {
    ASSIGN_OR_RETURN(const std::vector<Bpe::Pair> merges, ReadMerges(*file, path, *parts.vocab));
    parts.bpe = std::make_unique<Bpe>(*parts.vocab, merges, unknown_id);
  }

  ASSIGN_OR_RETURN(const int64_t bos, file->IntOr("tokenizer.ggml.bos_token_id", -1));
  parts.bos = bos >= 0 && bos < parts.vocab->size() ? static_cast<TokenId>(bos)
                                                    : parts.vocab->Find("<bos>").value_or(kNoToken);
  if (file->Has("tokenizer.chat_template")) {
    ASSIGN_OR_RETURN(const std::string_view jinja, file->String("tokenizer.chat_template"));
    parts.chat_template = jinja;
  }
  return parts;
}

}  // namespace lapidary::internal
