#include "coordinator/generate_service.h"

#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "common/error_details.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "coordinator/model_service.h"
#include "coordinator/token_stream.h"
#include "coordinator/trace_context.h"

namespace lapidary {
namespace {

CallFacts FactsOf(const grpc::CallbackServerContext& context) {
  CallFacts facts;
  facts.now = absl::Now();
  const auto deadline = context.deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    facts.deadline = absl::FromChrono(deadline);
  }
  const auto header = context.client_metadata().find("traceparent");
  if (header != context.client_metadata().end()) {
    facts.trace = ParseTraceparent(std::string_view(header->second.data(), header->second.size()));
  }
  return facts;
}

Rejection RejectionOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return Rejection::kUnknownModel;
    case absl::StatusCode::kAlreadyExists:
      return Rejection::kDuplicateId;
    case absl::StatusCode::kUnavailable:
      return Reason(status) == "DRAINING" ? Rejection::kDraining : Rejection::kNoGroup;
    default:
      return Rejection::kBadRequest;
  }
}

// One Generate call. Deletes itself in OnDone, which gRPC calls after everything else.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public StreamWriter {
 public:
  GenerateCall(const GenerateService::Parts& parts, const grpc::CallbackServerContext& context)
      : parts_(parts), facts_(FactsOf(context)) {}

  // Admits and submits. An error ends the call at once.
  void Begin(const v1::GenerateRequest& request) {
    const absl::Status status = TryBegin(request);
    if (status.ok()) return;
    parts_.metrics.Rejected(RejectionOf(status));
    LogInfo("request rejected", {{"request_id", ToValidUtf8(request.request_id().substr(0, 128))},
                                 {"trace_id", facts_.trace.trace_id},
                                 {"code", absl::StatusCodeToString(status.code())},
                                 {"why", std::string(status.message())}});
    grpc::ServerWriteReactor<v1::GenerateResponse>::Finish(ToGrpcStatus(status));
  }

  void Write(const v1::GenerateResponse& message) override { StartWrite(&message); }
  void Finish(const absl::Status& status) override {
    grpc::ServerWriteReactor<v1::GenerateResponse>::Finish(ToGrpcStatus(status));
  }

  void OnWriteDone(bool ok) override { stream_->WriteDone(ok, absl::Now()); }
  void OnCancel() override {
    const absl::Time now = absl::Now();
    if (stream_ != nullptr) stream_->ClientGone(now >= facts_.deadline, now);
  }
  void OnDone() override {
    if (stream_ != nullptr) parts_.live.Remove(stream_);
    delete this;
  }

 private:
  absl::Status TryBegin(const v1::GenerateRequest& request) {
    ASSIGN_OR_RETURN(const AdmittedRequest admitted,
                     parts_.admission.Admit(request, facts_,
                                            parts_.router.MaxContext(parts_.model.max_context)));
    RETURN_IF_ERROR(parts_.live.Claim(admitted.client_id));
    const SlowReaderPolicy policy{.queue_bytes = parts_.config.slow_reader_bytes,
                                  .timeout = parts_.config.slow_reader_timeout};
    TokenStream::Hooks hooks;
    hooks.cancel = [&router = parts_.router](const std::vector<RequestId>& ids) {
      router.Cancel(ids);
    };
    hooks.set_paused = [&router = parts_.router](const std::vector<RequestId>& ids, bool paused) {
      router.SetPaused(ids, paused);
    };
    hooks.over = [&live = parts_.live, id = admitted.client_id] { live.Release(id); };
    auto stream =
        std::make_shared<TokenStream>(admitted, parts_.model, parts_.metrics, policy,
                                      parts_.config.retry_delay, parts_.writes, std::move(hooks));
    parts_.live.Add(stream);
    if (absl::Status routed = parts_.router.Route(admitted, stream); !routed.ok()) {
      parts_.live.Release(admitted.client_id);
      parts_.live.Remove(stream);
      return routed;
    }
    // From Start on the stream may end the call from another thread: nothing is touched after it.
    stream_ = stream;
    stream->Start(this);
    return absl::OkStatus();
  }

  const GenerateService::Parts& parts_;
  const CallFacts facts_;
  std::shared_ptr<TokenStream> stream_;  // null when the call was rejected
};

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerateService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  auto* call = new GenerateCall(parts_, *context);
  call->Begin(*request);
  return call;
}

grpc::ServerUnaryReactor* GenerateService::Tokenize(grpc::CallbackServerContext* context,
                                                    const v1::TokenizeRequest* request,
                                                    v1::TokenizeResponse* response) {
  return Answer(context, TokenizeInput(parts_.model, *request, response));
}

grpc::ServerUnaryReactor* GenerateService::Detokenize(grpc::CallbackServerContext* context,
                                                      const v1::DetokenizeRequest* request,
                                                      v1::DetokenizeResponse* response) {
  return Answer(context, DetokenizeIds(parts_.model, *request, response));
}

grpc::ServerUnaryReactor* GenerateService::ListModels(grpc::CallbackServerContext* context,
                                                      const v1::ListModelsRequest*,
                                                      v1::ListModelsResponse* response) {
  DescribeModel(parts_.model, parts_.group.state(), response->add_models());
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* GenerateService::GetModel(grpc::CallbackServerContext* context,
                                                    const v1::GetModelRequest* request,
                                                    v1::GetModelResponse* response) {
  const absl::Status status = parts_.model.CheckName(request->model());
  if (status.ok()) DescribeModel(parts_.model, parts_.group.state(), response->mutable_model());
  return Answer(context, status);
}

}  // namespace lapidary
