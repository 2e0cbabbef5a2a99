// Deliberate mistakes: prove that the ThreadSanitizer set-up (shims, options, suppressions) still
// finds them. Built and run only with the tsan preset, where each has to be reported.
//
//   race   a data race in a gRPC callback
//   order  two mutexes that are taken in either order
//   clean  the same with the counter guarded, and one order: nothing may be reported
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <mutex>
#include <string_view>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "lapidary/v1/lapidary.grpc.pb.h"

namespace lapidary {
namespace {

bool guarded = false;
absl::Mutex counter_mutex;
int counter = 0;

void Count() {
  if (guarded) {
    absl::MutexLock lock(&counter_mutex);
    ++counter;
  } else {
    ++counter;
  }
}

class CountingReactor : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  CountingReactor() { Next(); }
  void OnWriteDone(bool ok) override {
    Count();
    if (ok && ++written_ < 20) {
      Next();
    } else {
      Finish(grpc::Status::OK);
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    message_.set_request_id("x");
    StartWrite(&message_);
  }
  v1::GenerateResponse message_;
  int written_ = 0;
};

class Service : public v1::LapidaryService::CallbackService {
 public:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext*,
                                                           const v1::GenerateRequest*) override {
    return new CountingReactor;
  }
};

int Traffic() {
  Service service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  std::atomic<bool> stop = false;
  std::thread engine([&stop] {
    while (!stop) Count();
  });
  const auto stub = v1::LapidaryService::NewStub(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  int messages = 0;
  for (int call = 0; call < 5; ++call) {
    grpc::ClientContext context;
    const auto reader = stub->Generate(&context, v1::GenerateRequest());
    v1::GenerateResponse response;
    while (reader->Read(&response)) ++messages;
    if (!reader->Finish().ok()) return 1;
  }
  stop = true;
  engine.join();
  server->Shutdown();
  return messages == 100 ? 0 : 1;
}

// One after the other, so that it never comes to the deadlock. One of each kind: absl itself aborts
// at two of its own.
int TakeTwo(bool in_either_order) {
  absl::Mutex a;
  std::mutex b;
  std::thread([&] {
    a.Lock();
    b.lock();
    b.unlock();
    a.Unlock();
  }).join();
  if (!in_either_order) return 0;
  std::thread([&] {
    b.lock();
    a.Lock();
    a.Unlock();
    b.unlock();
  }).join();
  return 0;
}

int Run(std::string_view what) {
  if (what == "order") return TakeTwo(true);
  guarded = what == "clean";
  return Traffic() + TakeTwo(false);
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) { return lapidary::Run(argc == 2 ? argv[1] : "clean"); }
