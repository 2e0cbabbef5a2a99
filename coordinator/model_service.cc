#include "coordinator/model_service.h"

#include "absl/strings/str_format.h"
#include "common/error_details.h"
#include "common/status_macros.h"
#include "coordinator/admission.h"

namespace lapidary {

absl::Status TokenizeInput(const ServedModel& model, const v1::TokenizeRequest& request,
                           v1::TokenizeResponse* response) {
  RETURN_IF_ERROR(model.CheckName(request.model()));
  RETURN_IF_ERROR(model.NeedTokenizer("Tokenize"));
  std::vector<TokenId> ids;
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      if (request.add_bos()) ids.push_back(model.tokenizer->bos());
      model.tokenizer->Encode(
          request.text(), request.parse_special() ? SpecialTokens::kParse : SpecialTokens::kAsText,
          &ids);
      break;
    case v1::TokenizeRequest::kChat: {
      ASSIGN_OR_RETURN(ids, EncodeChat(model, request.chat(), response->mutable_rendered()));
      break;
    }
    case v1::TokenizeRequest::INPUT_NOT_SET:
      return BadRequestError({FieldViolation{"input", "neither text nor chat is set"}});
  }
  response->mutable_token_ids()->Assign(ids.begin(), ids.end());
  for (const TokenId id : ids) response->add_tokens(model.TokenName(id));
  return absl::OkStatus();
}

absl::Status DetokenizeIds(const ServedModel& model, const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse* response) {
  RETURN_IF_ERROR(model.CheckName(request.model()));
  RETURN_IF_ERROR(model.NeedTokenizer("Detokenize"));
  std::vector<TokenId> ids;
  ids.reserve(static_cast<size_t>(request.token_ids_size()));
  for (int i = 0; i < request.token_ids_size(); ++i) {
    const uint32_t id = request.token_ids(i);
    if (id >= model.tokenizer->vocab_size()) {
      return BadRequestError(
          {FieldViolation{absl::StrFormat("token_ids[%d]", i),
                          absl::StrFormat("token id %d is not below the tokenizer's %d", id,
                                          model.tokenizer->vocab_size())}});
    }
    ids.push_back(static_cast<TokenId>(id));
  }
  response->set_text(model.tokenizer->Decode(ids, !request.keep_special_tokens()));
  return absl::OkStatus();
}

void DescribeModel(const ServedModel& model, const GroupState& group, v1::Model* out) {
  out->set_name(model.name);
  out->set_architecture(model.spec.display_name);
  out->set_parameter_count(static_cast<uint64_t>(model.parameter_count));
  out->set_vocabulary_size(static_cast<uint32_t>(model.spec.vocab));
  const bool ready = group.ready();
  out->set_max_context_tokens(static_cast<uint32_t>(
      ready && group.max_context > 0 ? group.max_context : model.max_context));
  out->set_compute(ready && !group.compute.empty() ? group.compute : model.compute);
  out->set_tensor_parallel(static_cast<uint32_t>(model.tensor_parallel));
  out->set_ready(ready);
  out->set_chat_format(ChatFormatName(model.chat_format));
}

}  // namespace lapidary
