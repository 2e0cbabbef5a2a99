#include "cli/bench/grpc_client.h"

#include <grpcpp/grpcpp.h>

#include <list>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "lapidary/v1/lapidary.grpc.pb.h"

namespace lapidary {
namespace {

// The asynchronous API with one completion queue, polled by the caller: a message costs a few
// microseconds, while the callback API would add a hop between threads to each.
class GrpcBenchClient final : public BenchClient {
 public:
  GrpcBenchClient(const AskOptions& options,
                  const std::vector<std::shared_ptr<grpc::Channel>>& channels)
      : options_(options) {
    for (const auto& channel : channels) stubs_.push_back(v1::LapidaryService::NewStub(channel));
  }

  ~GrpcBenchClient() override {
    CancelAll();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) Advance(static_cast<Call*>(tag), ok);
  }

  void Send(const BenchRequest& request, BenchTime due) override {
    calls_.emplace_front();
    Call& call = calls_.front();
    call.self = calls_.begin();
    call.answer.index = request.index;
    call.answer.started = due;
    call.context.set_deadline(std::chrono::system_clock::now() +
                              std::chrono::duration_cast<std::chrono::system_clock::duration>(
                                  std::chrono::duration<double>(options_.timeout_s)));
    const auto& stub = stubs_[next_stub_++ % stubs_.size()];
    call.reader = stub->PrepareAsyncGenerate(&call.context, Build(request), &queue_);
    call.reader->StartCall(&call);
  }

  void Poll(BenchTime until, std::vector<BenchAnswer>* answers) override {
    // gRPC's deadlines are of the system clock.
    const auto deadline = std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(
                              until - std::chrono::steady_clock::now());
    while (done_.empty()) {
      void* tag = nullptr;
      bool ok = false;
      if (queue_.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) break;
      Advance(static_cast<Call*>(tag), ok);
      // Under full load there is always an event, also past the deadline.
      if (std::chrono::steady_clock::now() >= until) break;
    }
    for (BenchAnswer& answer : done_) answers->push_back(std::move(answer));
    done_.clear();
  }

  void CancelAll() override {
    for (Call& call : calls_) call.context.TryCancel();
  }

  int64_t arrived_tokens() const override { return arrived_tokens_; }

 private:
  // At any time gRPC holds one tag of each call: that of the state's operation.
  enum class State { kStarting, kReading, kFinishing };
  struct Call {
    State state = State::kStarting;
    std::list<Call>::iterator self;
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader;
    v1::GenerateResponse message;
    grpc::Status status;
    BenchAnswer answer;
  };

  v1::GenerateRequest Build(const BenchRequest& request) const {
    v1::GenerateRequest message;
    message.set_model(options_.model);
    if (options_.batch) message.set_priority(v1::PRIORITY_BATCH);
    message.set_tenant(options_.tenant);
    message.mutable_token_ids()->mutable_ids()->Add(request.prompt.begin(), request.prompt.end());
    v1::SamplingOptions& sampling = *message.mutable_sampling();
    sampling.set_temperature(static_cast<float>(options_.temperature));
    sampling.set_top_k(static_cast<uint32_t>(options_.top_k));
    sampling.set_top_p(static_cast<float>(options_.top_p));
    sampling.set_seed(request.sampling_seed);
    message.mutable_stopping()->set_max_tokens(request.output_tokens);
    message.mutable_stopping()->set_ignore_eos(options_.ignore_eos);
    message.mutable_output()->set_skip_text(options_.skip_text);
    return message;
  }

  void Advance(Call* call, bool ok) {
    switch (call->state) {
      case State::kStarting:
      case State::kReading:
        if (call->state == State::kReading && ok) Take(*call);
        if (ok) {
          call->state = State::kReading;
          call->reader->Read(&call->message, call);
        } else {
          call->state = State::kFinishing;
          call->reader->Finish(&call->status, call);
        }
        return;
      case State::kFinishing:
        call->answer.finished = std::chrono::steady_clock::now();
        if (!call->status.ok()) {
          call->answer.error_kind =
              absl::StatusCodeToString(static_cast<absl::StatusCode>(call->status.error_code()));
          call->answer.error = call->status.error_message();
        }
        done_.push_back(std::move(call->answer));
        calls_.erase(call->self);
        return;
    }
  }

  void Take(Call& call) {
    BenchAnswer& answer = call.answer;
    switch (call.message.event_case()) {
      case v1::GenerateResponse::kDelta: {
        const v1::Delta& delta = call.message.delta();
        if (delta.token_ids_size() > 0) {
          answer.arrivals.push_back({std::chrono::steady_clock::now(), delta.token_ids_size()});
          arrived_tokens_ += delta.token_ids_size();
        }
        if (options_.keep_answers) {
          answer.token_ids.insert(answer.token_ids.end(), delta.token_ids().begin(),
                                  delta.token_ids().end());
          answer.text += delta.text();
        }
        return;
      }
      case v1::GenerateResponse::kChoiceFinished:
        answer.finish_reason =
            call.message.choice_finished().reason() == v1::FINISH_REASON_LENGTH ? "length"
            : call.message.choice_finished().reason() == v1::FINISH_REASON_STOP ? "stop"
                                                                                : "other";
        return;
      case v1::GenerateResponse::kUsage:
        answer.prompt_tokens = call.message.usage().prompt_tokens();
        answer.completion_tokens = call.message.usage().completion_tokens();
        answer.cached_tokens = call.message.usage().cached_prompt_tokens();
        return;
      case v1::GenerateResponse::kPromptScores:
      case v1::GenerateResponse::EVENT_NOT_SET:
        return;
    }
  }

  const AskOptions options_;
  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<v1::LapidaryService::Stub>> stubs_;
  size_t next_stub_ = 0;
  std::list<Call> calls_;  // in flight; their addresses are gRPC's tags
  std::vector<BenchAnswer> done_;
  int64_t arrived_tokens_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BenchClient>> ConnectGrpcBenchClient(const std::string& address,
                                                                    const AskOptions& options) {
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(10);
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < options.connections; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(64 << 20);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else channels share a connection
    channels.push_back(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    if (!channels.back()->WaitForConnected(deadline)) {
      return absl::UnavailableError(absl::StrFormat(
          "no Lapidary server answers at %s (is `lapidary serve` running there?)", address));
    }
  }
  return std::unique_ptr<BenchClient>(new GrpcBenchClient(options, channels));
}

}  // namespace lapidary
