// `lapidary serve` as a child process of a test, ready to be asked over gRPC.
#pragma once
#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lapidary/v1/lapidary.grpc.pb.h"

namespace lapidary {

class ServeProcess {
 public:
  // Starts the binary named by LAPIDARY_BINARY and waits until it serves.
  static absl::StatusOr<std::unique_ptr<ServeProcess>> Start(const std::string& model,
                                                             const std::vector<std::string>& flags);
  ~ServeProcess();  // SIGTERM, then SIGKILL
  // SIGTERM, which drains. DEADLINE_EXCEEDED when it does not end in time; ABORTED when its exit
  // status is not 0. Call once.
  absl::Status Stop(absl::Duration timeout);

  // A client with a connection of its own.
  std::unique_ptr<v1::LapidaryService::Stub> NewStub(grpc::ChannelArguments arguments = {}) const;
  // Sum of a series of /metrics over its labels.
  absl::StatusOr<double> Metric(const std::string& name) const;

 private:
  ServeProcess() = default;
  pid_t pid_ = -1;
  std::string folder_;  // temporary, holds the address file
  std::string address_;
  int metrics_port_ = 0;
};

// One generation, read to its end.
struct Answer {
  std::vector<uint32_t> token_ids;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
  uint32_t completion_tokens = 0;  // as usage says
};
absl::StatusOr<Answer> Ask(v1::LapidaryService::Stub& stub, const v1::GenerateRequest& request);

}  // namespace lapidary
