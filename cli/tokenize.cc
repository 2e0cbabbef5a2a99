// `lapidary tokenize`: text to ids and back, with a checkpoint's own tokenizer.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "model/tokenizer.h"

namespace lapidary {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

int Decode(const Tokenizer& tokenizer, const TokenizeFlags& flags) {
  std::vector<TokenId> ids;
  for (const uint32_t id : flags.decode) {
    if (id >= static_cast<uint64_t>(tokenizer.vocab_size())) {
      return Fail(absl::InvalidArgumentError(absl::StrFormat(
          "token id %d is outside the vocabulary of %d entries", id, tokenizer.vocab_size())));
    }
    ids.push_back(static_cast<TokenId>(id));
  }
  const std::string text = tokenizer.Decode(ids, /*skip_special=*/!flags.special);
  std::puts(flags.json ? Dump({{"text", text}}).c_str() : text.c_str());
  return 0;
}

int Encode(const Tokenizer& tokenizer, const TokenizeFlags& flags) {
  const std::string text =
      flags.from_stdin ? std::string(std::istreambuf_iterator<char>(std::cin), {}) : flags.text;
  std::vector<TokenId> ids;
  if (flags.bos) ids.push_back(tokenizer.bos());
  tokenizer.Encode(text, flags.special ? SpecialTokens::kParse : SpecialTokens::kAsText, &ids);
  if (flags.json) {
    Json tokens = Json::array();
    for (const TokenId id : ids) tokens.push_back(std::string(tokenizer.PieceName(id)));
    std::puts(Dump({{"token_ids", ids}, {"tokens", tokens}}).c_str());
    return 0;
  }
  for (const TokenId id : ids) {
    std::printf("%7d  %s\n", id, Dump(std::string(tokenizer.PieceName(id))).c_str());
  }
  return 0;
}

}  // namespace

int RunTokenize(const TokenizeFlags& flags) {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(flags.model_path);
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  return flags.has_decode ? Decode(**tokenizer, flags) : Encode(**tokenizer, flags);
}

}  // namespace lapidary
