#include "cli/http_get.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace lapidary {

namespace {

constexpr size_t kMaxAnswerBytes = 64 << 20;

// Closes on the way out.
struct Socket {
  ~Socket() {
    if (fd >= 0) close(fd);
  }
  int fd = -1;
};

// Connects to the first of the host's addresses that answers.
bool Connect(const std::string& host, const std::string& port, absl::Duration timeout,
             Socket* connection) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return false;
  const timeval limit = absl::ToTimeval(timeout);
  bool connected = false;
  for (const addrinfo* a = found; a != nullptr && !connected; a = a->ai_next) {
    Socket attempt;
    attempt.fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (attempt.fd < 0) continue;
    setsockopt(attempt.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(attempt.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    connected = connect(attempt.fd, a->ai_addr, a->ai_addrlen) == 0;
    if (connected) std::swap(connection->fd, attempt.fd);
  }
  freeaddrinfo(found);
  return connected;
}

// What the server sends until it closes; false when it does not, or not in time.
bool Exchange(int fd, const std::string& request, absl::Time deadline, std::string* answer) {
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    return false;
  }
  char buffer[16384];
  while (answer->size() < kMaxAnswerBytes && absl::Now() < deadline) {
    const ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0;
    answer->append(buffer, static_cast<size_t>(n));
  }
  return false;
}

// The body as long as its header says; nothing when it is cut off.
std::optional<std::string> Body(const std::string& answer, size_t head_end) {
  std::string body = answer.substr(head_end + 4);
  std::string head = answer.substr(0, head_end);
  for (char& c : head) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const std::string key = "\r\ncontent-length:";
  const size_t at = head.find(key);
  if (at == std::string::npos) return body;
  const size_t length = std::strtoull(head.c_str() + at + key.size(), nullptr, 10);
  if (body.size() < length) return std::nullopt;
  body.resize(length);
  return body;
}

}  // namespace

absl::StatusOr<HttpPage> HttpGet(const std::string& address, const std::string& path,
                                 absl::Duration timeout) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("'%s' is not HOST:PORT", address));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  const absl::Time deadline = absl::Now() + timeout;
  const std::string request =
      absl::StrFormat("GET %s HTTP/1.0\r\nHost: %s\r\nConnection: close\r\n\r\n", path, address);
  Socket connection;
  std::string answer;
  const bool ok = Connect(host, address.substr(colon + 1), timeout, &connection) &&
                  Exchange(connection.fd, request, deadline, &answer);
  const size_t head_end = answer.find("\r\n\r\n");
  const bool http = ok && answer.compare(0, 5, "HTTP/") == 0 && head_end != std::string::npos;
  std::optional<std::string> body;
  if (http) body = Body(answer, head_end);
  if (!body) return absl::UnavailableError(absl::StrFormat("no answer from %s%s", address, path));
  HttpPage page;
  page.code = atoi(answer.c_str() + answer.find(' ') + 1);
  page.body = *std::move(body);
  return page;
}

absl::StatusOr<HttpPage> HttpGet(int port, const std::string& path, absl::Duration timeout) {
  return HttpGet(absl::StrFormat("127.0.0.1:%d", port), path, timeout);
}

}  // namespace lapidary
