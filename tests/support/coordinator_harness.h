// A real coordinator on loopback with scripted workers, and what a client sees of it.
#pragma once
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/server.h"
#include "lapidary/v1/lapidary.grpc.pb.h"
#include "model/tokenizer.h"
#include "tests/support/fake_worker.h"

namespace lapidary {

inline constexpr char kModelWithTokenizer[] = "tests/golden/models/dense-gpu";
inline constexpr char kModelWithoutTokenizer[] = "tests/golden/models/gemma3-awkward";

// Everything a Generate call gave.
struct Reply {
  std::vector<v1::GenerateResponse> events;
  grpc::Status status;

  std::string Text(uint32_t choice = 0) const;
  std::vector<uint32_t> Ids(uint32_t choice = 0) const;
  std::optional<v1::ChoiceFinished> Finished(uint32_t choice = 0) const;
  std::optional<v1::Usage> Usage() const;
};

// A Generate call in its own thread.
class Call {
 public:
  Call(v1::LapidaryService::Stub& stub, v1::GenerateRequest request,
       absl::Duration deadline = absl::Seconds(20), const std::string& traceparent = "");
  ~Call();
  void Cancel() { context_.TryCancel(); }
  // Waits for the end. The reply lives as long as this Call.
  const Reply& Wait();

 private:
  grpc::ClientContext context_;
  Reply reply_;
  std::thread thread_;
};

class CoordinatorTest : public ::testing::Test {
 protected:
  // Ports 0, short timeouts.
  static CoordinatorConfig TestConfig(const std::string& model = kModelWithTokenizer);
  // The coordinator and, when asked, its workers, ready.
  void StartServer(const CoordinatorConfig& config);
  void StartWorkers(int count, uint32_t max_context = 64);
  void StartAll(const CoordinatorConfig& config) {
    StartServer(config);
    StartWorkers(config.tensor_parallel);
  }
  std::unique_ptr<Call> Generate(const v1::GenerateRequest& request) {
    return std::make_unique<Call>(*stub_, request);
  }
  FakeWorker& leader() { return *workers_[0]; }
  std::vector<TokenId> Encode(const std::string& text) const;
  // One value of /metrics, by the sample's text before the value; -1 when it is not there.
  double Metric(const std::string& sample) const;

  bool AwaitMetric(const std::string& sample, double value) const;

  std::unique_ptr<CoordinatorServer> server_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::LapidaryService::Stub> stub_;
  std::unique_ptr<Tokenizer> tokenizer_;  // null for a model without one
};

// A request for these token ids.
v1::GenerateRequest IdsRequest(const std::vector<uint32_t>& ids, uint32_t max_tokens = 8);
v1::GenerateRequest TextRequest(const std::string& text, uint32_t max_tokens = 8);

}  // namespace lapidary
