// lapidary.cluster.v1 over gRPC: one bidirectional stream per worker, handed to the group.
#pragma once
#include <grpcpp/grpcpp.h>

#include "coordinator/group_client.h"
#include "lapidary/cluster/v1/cluster.grpc.pb.h"

namespace lapidary {

class ClusterService final : public cluster::v1::ClusterService::CallbackService {
 public:
  explicit ClusterService(GroupClient& group) : group_(group) {}

  grpc::ServerBidiReactor<cluster::v1::ConnectRequest, cluster::v1::ConnectResponse>* Connect(
      grpc::CallbackServerContext* context) override;

 private:
  GroupClient& group_;
};

}  // namespace lapidary
