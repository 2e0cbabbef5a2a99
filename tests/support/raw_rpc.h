// Calls a method by its path with bytes: services whose stubs Debian does not install (health,
// reflection), as any client in another language would.
#pragma once
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "common/grpc_status.h"

namespace lapidary {

// A length-delimited protobuf field; the value is shorter than 128 bytes.
inline std::string BytesField(int number, const std::string& value) {
  if (value.empty()) return "";
  std::string out;
  out.push_back(static_cast<char>(number << 3 | 2));
  out.push_back(static_cast<char>(value.size()));
  return out + value;
}

inline grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

inline std::string FromBuffer(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  (void)buffer.Dump(&slices);
  std::string out;
  for (const grpc::Slice& s : slices) {
    out.append(reinterpret_cast<const char*>(s.begin()), s.size());
  }
  return out;
}

// One message each way over a bidirectional (or unary: the wire is the same) method.
inline absl::StatusOr<std::string> BidiRpc(const std::shared_ptr<grpc::Channel>& channel,
                                           const std::string& path, const std::string& request) {
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(10)));
  auto call = stub.PrepareCall(&context, path, &queue);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  wait();
  call->WriteLast(ToBuffer(request), grpc::WriteOptions(), nullptr);
  wait();
  grpc::ByteBuffer reply;
  call->Read(&reply, nullptr);
  const bool got = wait();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
  }
  if (!status.ok()) return FromGrpcStatus(status);
  return got ? FromBuffer(reply) : "";
}

inline absl::StatusOr<std::string> UnaryRpc(const std::shared_ptr<grpc::Channel>& channel,
                                            const std::string& path, const std::string& request) {
  return BidiRpc(channel, path, request);
}

}  // namespace lapidary
