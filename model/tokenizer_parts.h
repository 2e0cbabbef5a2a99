// What the readers of the file formats hand to the tokenizer.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "model/bpe.h"
#include "model/tokenizer_matcher.h"
#include "model/tokenizer_vocab.h"

namespace lapidary::internal {

struct TokenizerParts {
  std::unique_ptr<Vocabulary> vocab;  // sealed; `bpe` looks into it
  std::unique_ptr<Bpe> bpe;
  // Matched whole in raw text before anything is merged. Markers only with SpecialTokens::kParse;
  // runs (of newlines, spaces, HTML tags in Gemma 3) always, as they are ordinary text.
  std::vector<TokenMatcher::Entry> markers, runs;
  TokenId bos = kNoToken;
  std::string chat_template;
};

// Longer than any entry of a real vocabulary (93 bytes); bounds the matcher's depth.
inline constexpr size_t kLongestEntry = 4096;

// `directory` holds tokenizer.json and, if they exist, tokenizer_config.json and chat_template.*.
absl::StatusOr<TokenizerParts> ReadTokenizerJson(const std::string& directory);
absl::StatusOr<TokenizerParts> ReadGgufTokenizer(const std::string& path);

}  // namespace lapidary::internal
