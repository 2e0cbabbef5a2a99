#include "coordinator/served_model.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_format.h"
#include "common/error_details.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

ChatFormat FamilyDefault(const ModelSpec& spec) {
  if (spec.family == ModelFamily::kGemma3) return ChatFormat::kGemma3;
  return spec.ple_dim > 0 ? ChatFormat::kGemma4Small : ChatFormat::kGemma4Big;
}

// Length of the valid UTF-8 sequence at the front of `text`, 0 when there is none.
size_t ValidSequence(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, beyond U+10FFFF.
  if (lead == 0xe0 && byte(1) < 0xa0) return 0;
  if (lead == 0xed && byte(1) > 0x9f) return 0;
  if (lead == 0xf0 && byte(1) < 0x90) return 0;
  if (lead == 0xf4 && byte(1) > 0x8f) return 0;
  return length;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Load(const CoordinatorConfig& config) {
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Checkpoint> checkpoint,
      Checkpoint::Open(config.model_path, CheckpointOptions{.require_tensors = false}));
  auto model = std::make_unique<ServedModel>();
  model->name = config.ServedName();
  model->compute = config.compute != "auto"  ? config.compute
                   : checkpoint->quantized() ? "int8"
                                             : "bf16";
  model->tensor_parallel = config.tensor_parallel;
  model->spec = checkpoint->spec();
  model->defaults = checkpoint->generation_defaults();
  model->eos_ids = model->defaults.eos_ids.empty() ? model->spec.eos_ids : model->defaults.eos_ids;
  for (const StoredTensor& tensor : checkpoint->tensors()) {
    model->parameter_count += tensor.rows() * tensor.inner();
  }
  model->max_context = config.max_context > 0
                           ? std::min<int64_t>(config.max_context, model->spec.max_context)
                           : model->spec.max_context;

  auto tokenizer = Tokenizer::Load(config.model_path);
  if (tokenizer.ok()) {
    model->tokenizer = *std::move(tokenizer);
    const std::string& stored = model->tokenizer->chat_template();
    model->chat_format = RecognizeTemplate(stored, FamilyDefault(model->spec));
    if (model->chat_format == ChatFormat::kUnknown) {
      // Earlier and edited versions of Gemma's templates are common: serve the nearest one.
      model->chat_format = NearestFormat(stored, FamilyDefault(model->spec));
      LogWarning(model->chat_format == ChatFormat::kUnknown
                     ? "chat template not known: chat input is refused"
                     : "chat template not known: the nearest built-in format is used",
                 {{"model", model->name},
                  {"template_sha256", TemplateSha256(stored)},
                  {"begins_with", ToValidUtf8(stored.substr(0, 60))},
                  {"format", ChatFormatName(model->chat_format)}});
    }
    model->tool_call_end = model->tokenizer->Find("<tool_call|>");
    model->tool_response_begin = model->tokenizer->Find("<|tool_response>");
  } else if (absl::IsNotFound(tokenizer.status())) {
    LogWarning("no tokenizer: only token ids are served",
               {{"model", model->name}, {"why", std::string(tokenizer.status().message())}});
  } else {
    return tokenizer.status();
  }
  return model;
}

absl::Status ServedModel::CheckName(const std::string& requested) const {
  if (requested.empty() || requested == name) return absl::OkStatus();
  return WithResource(
      absl::NotFoundError(absl::StrFormat("no model '%s' here; '%s' is served", requested, name)),
      "model", requested);
}

absl::Status ServedModel::NeedTokenizer(const std::string& what) const {
  if (tokenizer != nullptr) return absl::OkStatus();
  return WithReason(
      absl::FailedPreconditionError(absl::StrFormat(
          "%s needs a tokenizer, and model '%s' has none: send token ids", what, name)),
      "NO_TOKENIZER");
}

std::string ServedModel::TokenName(TokenId id) const {
  if (tokenizer == nullptr || id < 0 || id >= tokenizer->vocab_size()) return "";
  return ToValidUtf8(tokenizer->PieceName(id));
}

const char* ChatFormatName(ChatFormat format) {
  switch (format) {
    case ChatFormat::kGemma4Big:
      return "gemma4";
    case ChatFormat::kGemma4Small:
      return "gemma4-small";
    case ChatFormat::kGemma3:
      return "gemma3";
    case ChatFormat::kUnknown:
      return "unknown";
  }
  return "unknown";
}

std::string ToValidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t length = ValidSequence(text);
    if (length == 0) {
      out += "\xef\xbf\xbd";
      text.remove_prefix(1);
    } else {
      out += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return out;
}

}  // namespace lapidary
