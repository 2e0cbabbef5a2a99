#include "model/chat_format.h"

#include <openssl/evp.h>

#include <utility>

#include "absl/status/status.h"
#include "model/internal/chat_format_values.h"

namespace lapidary {
namespace {

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// sha256 of the official files of 2026-07-09. Earlier ones differ in blank lines, thoughts and null
// and are not rendered here.
constexpr std::string_view kGemma4BigHash =
    "ae53464bf3be25802b3a5b37def7fd89667067d7577049b3b2d74c4d8de4c6d4";
constexpr std::string_view kGemma4SmallHash =
    "0a2c8073c878ab1da004bee933a998606537bbb62016310352c7285c3f01c5b5";

}  // namespace

absl::StatusOr<std::vector<PromptSegment>> RenderChat(ChatFormat format,
                                                      const ChatRequest& request) {
  switch (format) {
    case ChatFormat::kGemma4Big:
      return internal::RenderGemma4(/*big=*/true, request);
    case ChatFormat::kGemma4Small:
      return internal::RenderGemma4(/*big=*/false, request);
    case ChatFormat::kGemma3:
      return internal::RenderGemma3(request);
    case ChatFormat::kUnknown:
      break;
  }
  return absl::FailedPreconditionError(
      "the model's chat template is not one that is built in; send a text prompt instead");
}

std::string Join(const std::vector<PromptSegment>& segments) {
  std::string text;
  for (const PromptSegment& segment : segments) text += segment.text;
  return text;
}

std::vector<TokenId> EncodeSegments(const Tokenizer& tokenizer,
                                    const std::vector<PromptSegment>& segments) {
  std::vector<TextSpan> spans;
  spans.reserve(segments.size());
  for (const PromptSegment& segment : segments) {
    spans.push_back(
        {segment.text, segment.trusted ? SpecialTokens::kParse : SpecialTokens::kAsText});
  }
  std::vector<TokenId> ids;
  tokenizer.EncodeSpans(spans, &ids);
  return ids;
}

std::string TemplateSha256(std::string_view jinja_source) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (EVP_Digest(jinja_source.data(), jinja_source.size(), digest, &length, EVP_sha256(),
                 nullptr) != 1) {
    return {};
  }
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < length; ++i) {
    text += kHex[digest[i] >> 4];
    text += kHex[digest[i] & 15];
  }
  return text;
}

ChatFormat RecognizeTemplate(std::string_view jinja_source, ChatFormat family_default) {
  if (jinja_source.empty()) return family_default;
  const std::string hash = TemplateSha256(jinja_source);
  if (hash == kGemma4BigHash) return ChatFormat::kGemma4Big;
  if (hash == kGemma4SmallHash) return ChatFormat::kGemma4Small;
  // Gemma 3's was published with several endings and line breaks, all of them the same rules.
  const bool gemma3 = Contains(jinja_source, "'<start_of_turn>' + role + '\\n'") &&
                      Contains(jinja_source, "first_user_prefix") &&
                      Contains(jinja_source, "must alternate user/assistant") &&
                      !Contains(jinja_source, "tools");
  return gemma3 ? ChatFormat::kGemma3 : ChatFormat::kUnknown;
}

ChatFormat NearestFormat(std::string_view jinja_source, ChatFormat family_default) {
  const ChatFormat exact = RecognizeTemplate(jinja_source, family_default);
  if (exact != ChatFormat::kUnknown) return exact;
  if (Contains(jinja_source, "<|turn>")) {
    // Only the big models' file writes a whole empty thought.
    return Contains(jinja_source, "<|channel>thought\\n<channel|>") ? ChatFormat::kGemma4Big
                                                                    : ChatFormat::kGemma4Small;
  }
  return Contains(jinja_source, "<start_of_turn>") ? ChatFormat::kGemma3 : ChatFormat::kUnknown;
}

}  // namespace lapidary
