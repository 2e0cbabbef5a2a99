#include "common/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;

constexpr auto kClientTimeout = std::chrono::seconds(10);
constexpr uint32_t kMaxHeaderBytes = 8192;
constexpr int kMaxConnections = 64;  // scrapers and probes; more are closed at once

using Routes = std::map<std::string, HttpHandler>;

// One connection. Kept alive by the operation in flight.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, const Routes& routes, int* connections)
      : stream_(std::move(socket)), routes_(routes), connections_(connections) {
    ++*connections_;
  }
  ~Session() { --*connections_; }

  void Read() {
    parser_.emplace();
    parser_->header_limit(kMaxHeaderBytes);
    parser_->body_limit(0);
    stream_.expires_after(kClientTimeout);
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](beast::error_code error, size_t) {
                       if (error) return self->Close();
                       self->Answer();
                     });
  }

 private:
  void Answer() {
    const http::request<http::empty_body>& request = parser_->get();
    response_ = {};
    response_.version(request.version());
    response_.keep_alive(request.keep_alive());
    response_.set(http::field::server, "lapidary");
    HttpResponse answer = Handle(request);
    response_.result(static_cast<unsigned>(answer.status));
    response_.set(http::field::content_type, answer.content_type);
    response_.body() = std::move(answer.body);
    response_.prepare_payload();
    if (request.method() == http::verb::head) response_.body().clear();  // the length stays
    stream_.expires_after(kClientTimeout);
    http::async_write(stream_, response_,
                      [self = shared_from_this()](beast::error_code error, size_t) {
                        if (error || !self->response_.keep_alive()) return self->Close();
                        self->Read();
                      });
  }

  HttpResponse Handle(const http::request<http::empty_body>& request) {
    if (request.method() != http::verb::get && request.method() != http::verb::head) {
      response_.set(http::field::allow, "GET, HEAD");
      return HttpResponse{405, "only GET and HEAD\n"};
    }
    std::string path(request.target());
    path = path.substr(0, path.find('?'));
    const auto route = routes_.find(path);
    if (route == routes_.end()) {
      std::string known;
      for (const auto& entry : routes_) known += entry.first + "\n";
      return HttpResponse{404, "not here; try\n" + known};
    }
    return route->second();
  }

  void Close() {
    beast::error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
  }

  beast::tcp_stream stream_;
  const Routes& routes_;
  int* const connections_;  // counted on the server's thread only
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::empty_body>> parser_;
  http::response<http::string_body> response_;
};

}  // namespace

class HttpServer::Impl {
 public:
  explicit Impl(Routes routes) : routes_(std::move(routes)), acceptor_(context_) {}

  ~Impl() {
    context_.stop();
    if (thread_.joinable()) thread_.join();
    // context_ is destroyed last and drops the sessions, which count themselves out.
  }

  absl::Status Listen(const ListenAddress& address) {
    const auto failed = [&](const beast::error_code& error) {
      return absl::UnavailableError(
          absl::StrFormat("can not listen on %s: %s", address.ToString(), error.message()));
    };
    beast::error_code error;
    tcp::resolver resolver(context_);
    const auto found =
        resolver.resolve(address.host, std::to_string(address.port), tcp::resolver::passive, error);
    if (error) return failed(error);
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (error) return failed(error);
    acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (error) return failed(error);
    acceptor_.bind(endpoint, error);
    if (error) return failed(error);
    acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return failed(error);
    port_ = acceptor_.local_endpoint(error).port();
    if (error) return failed(error);
    Accept();
    thread_ = std::thread([this] { context_.run(); });
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  void Accept() {
    acceptor_.async_accept([this](beast::error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      // Out of descriptors, or a client that left at once: keep listening.
      if (!error && connections_ < kMaxConnections) {
        std::make_shared<Session>(std::move(socket), routes_, &connections_)->Read();
      }
      Accept();
    });
  }

  const Routes routes_;
  int connections_ = 0;  // server thread only
  asio::io_context context_{1};
  tcp::acceptor acceptor_;
  int port_ = 0;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const ListenAddress& address,
                                                              Routes routes) {
  auto impl = std::make_unique<Impl>(std::move(routes));
  RETURN_IF_ERROR(impl->Listen(address));
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;
int HttpServer::port() const { return impl_->port(); }

}  // namespace lapidary
