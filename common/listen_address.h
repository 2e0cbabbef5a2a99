// "host:port" as people type it for something that listens.
#pragma once
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lapidary {

struct ListenAddress {
  std::string host;  // a name or an address, IPv6 without brackets
  int port = 0;      // 0: any free port

  // 127.0.0.0/8, ::1 or "localhost": only this machine reaches it.
  bool loopback() const;
  std::string ToString() const;  // IPv6 in brackets
};

// INVALID_ARGUMENT unless it is HOST:PORT or [IPV6]:PORT with a port of 0 to 65535.
absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text);

// Tries to bind and lets go again: says why an address can not be listened on ("address already in
// use"), which gRPC does not. OK does not promise that the next bind succeeds.
absl::Status ProbeListen(const ListenAddress& address);

}  // namespace lapidary
