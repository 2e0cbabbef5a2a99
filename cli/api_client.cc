#include "cli/api_client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "lapidary/v1/lapidary.grpc.pb.h"

namespace lapidary {
namespace {

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

class GrpcApiClient : public ApiClient {
 public:
  explicit GrpcApiClient(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(v1::LapidaryService::NewStub(channel)) {}

  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<bool(const v1::GenerateResponse&)>& on_event) override {
    grpc::ClientContext context;
    const std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader =
        stub_->Generate(&context, request);
    v1::GenerateResponse event;
    bool cancelled = false;
    while (reader->Read(&event)) {
      if (!cancelled && !on_event(event)) {
        cancelled = true;
        context.TryCancel();
      }
    }
    const grpc::Status status = reader->Finish();
    if (cancelled) return absl::CancelledError("cancelled by the caller");
    return FromGrpc(status);
  }

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) override {
    return Call<v1::TokenizeResponse>(&v1::LapidaryService::Stub::Tokenize, request);
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) override {
    return Call<v1::DetokenizeResponse>(&v1::LapidaryService::Stub::Detokenize, request);
  }
  absl::StatusOr<v1::Model> GetModel(const std::string& name) override {
    v1::GetModelRequest request;
    request.set_model(name);
    ASSIGN_OR_RETURN(v1::GetModelResponse response,
                     Call<v1::GetModelResponse>(&v1::LapidaryService::Stub::GetModel, request));
    return std::move(*response.mutable_model());
  }

 private:
  template <class Response, class Method, class Request>
  absl::StatusOr<Response> Call(Method method, const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    Response response;
    RETURN_IF_ERROR(FromGrpc((stub_.get()->*method)(&context, request, &response)));
    return response;
  }

  const std::unique_ptr<v1::LapidaryService::Stub> stub_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ApiClient>> ApiClient::Connect(const std::string& address,
                                                              absl::Duration timeout) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + timeout))) {
    return absl::UnavailableError(absl::StrFormat(
        "no Lapidary server answers at %s (is `lapidary serve` running there?)", address));
  }
  return std::unique_ptr<ApiClient>(new GrpcApiClient(channel));
}

}  // namespace lapidary
