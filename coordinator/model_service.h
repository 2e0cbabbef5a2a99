// The RPCs that need no group: tokenizing and describing the model. Plain functions; the gRPC class
// that calls them is in generate_service.cc.
#pragma once
#include "absl/status/status.h"
#include "coordinator/group_state.h"
#include "coordinator/served_model.h"
#include "lapidary/v1/lapidary.pb.h"

namespace lapidary {

absl::Status TokenizeInput(const ServedModel& model, const v1::TokenizeRequest& request,
                           v1::TokenizeResponse* response);
absl::Status DetokenizeIds(const ServedModel& model, const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse* response);
void DescribeModel(const ServedModel& model, const GroupState& group, v1::Model* out);

}  // namespace lapidary
