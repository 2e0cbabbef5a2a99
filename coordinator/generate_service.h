// lapidary.v1 over gRPC, callback API: one reactor per Generate call (hop 1 of a request's path).
#pragma once
#include <grpcpp/grpcpp.h>

#include "coordinator/admission.h"
#include "coordinator/config.h"
#include "coordinator/coordinator_metrics.h"
#include "coordinator/group_client.h"
#include "coordinator/live_requests.h"
#include "coordinator/router.h"
#include "coordinator/served_model.h"
#include "coordinator/write_scheduler.h"
#include "lapidary/v1/lapidary.grpc.pb.h"

namespace lapidary {

// Borrows everything; outlived by all of it.
class GenerateService final : public v1::LapidaryService::CallbackService {
 public:
  struct Parts {
    const CoordinatorConfig& config;
    const ServedModel& model;
    Admission& admission;
    Router& router;
    GroupClient& group;
    LiveRequests& live;
    CoordinatorMetrics& metrics;
    WriteScheduler& writes;
  };
  explicit GenerateService(const Parts& parts) : parts_(parts) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

 private:
  const Parts parts_;
};

}  // namespace lapidary
