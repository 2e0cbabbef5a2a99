// A small HTTP/1.1 server for metrics and probes: GET on fixed paths, plain text, its own port.
// Not for the public API.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/listen_address.h"

namespace lapidary {

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "text/plain; charset=utf-8";
};

// Answers one GET. Runs on the server's only thread: quick, never blocking on another request.
using HttpHandler = std::function<HttpResponse()>;

// Owns one thread. Unknown paths are 404, other methods 405; a slow or silent client is dropped
// after some seconds, so it can not hold up shutdown or the other clients.
class HttpServer {
 public:
  // Paths are exact ("/metrics"); a query string is ignored. UNAVAILABLE when the port is taken.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const ListenAddress& address, std::map<std::string, HttpHandler> routes);
  // Closes every connection and joins the thread. Handlers are not called afterwards.
  ~HttpServer();

  int port() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lapidary
