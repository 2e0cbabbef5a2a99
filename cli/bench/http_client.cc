#include "cli/bench/http_client.h"

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <limits>
#include <list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/openai_stream.h"
#include "cli/bench/sse.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using Endpoints = tcp::resolver::results_type;

constexpr size_t kMaxErrorBytes = 4096;
constexpr auto kConnectTimeout = std::chrono::seconds(10);

// http://HOST:PORT/base, taken apart.
struct Url {
  std::string host, port, base;
};

absl::StatusOr<Url> ParseUrl(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  if (text.compare(0, kScheme.size(), kScheme) != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--openai takes http://HOST:PORT, not '%s'", text));
  }
  const size_t slash = text.find('/', kScheme.size());
  const std::string authority = text.substr(kScheme.size(), slash - kScheme.size());
  const size_t colon = authority.rfind(':');
  Url url;
  url.host = authority.substr(0, colon);
  url.port = colon == std::string::npos ? "80" : authority.substr(colon + 1);
  url.base = slash == std::string::npos ? "" : text.substr(slash);
  while (!url.base.empty() && url.base.back() == '/') url.base.pop_back();
  // "http://HOST:PORT/v1" is what OpenAI's clients call the base.
  if (absl::EndsWith(url.base, "/v1")) url.base.resize(url.base.size() - 3);
  if (url.host.empty() || url.port.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat("no host or port in '%s'", text));
  }
  return url;
}

std::string OneLine(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }, ' ');
  if (text.size() > 300) text = text.substr(0, 300) + "...";
  return text;
}

// One request and its streamed answer. Held by the operation in flight.
class HttpCall : public std::enable_shared_from_this<HttpCall> {
 public:
  struct Parts {
    asio::io_context io;
    Url url;
    Endpoints endpoints;
    AskOptions options;
    std::list<std::unique_ptr<beast::tcp_stream>> idle;  // kept-alive connections
    std::list<std::weak_ptr<HttpCall>> calls;
    std::vector<BenchAnswer> done;
    int64_t arrived_tokens = 0;
  };

  HttpCall(Parts& parts, const BenchRequest& request, BenchTime due) : parts_(parts) {
    answer_.index = request.index;
    answer_.started = due;
    request_.method(http::verb::post);
    request_.target(parts.url.base + "/v1/completions");
    request_.version(11);
    request_.set(http::field::host, parts.url.host + ":" + parts.url.port);
    request_.set(http::field::content_type, "application/json");
    request_.set(http::field::accept, "text/event-stream");
    request_.keep_alive(parts.options.keep_alive);
    request_.body() = CompletionBody(request, parts.options);
    request_.prepare_payload();
  }

  void Start() {
    deadline_ = std::chrono::steady_clock::now() +
                std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                    std::chrono::duration<double>(parts_.options.timeout_s));
    if (parts_.idle.empty()) return Connect();
    reused_ = true;
    stream_ = std::move(parts_.idle.back());
    parts_.idle.pop_back();
    stream_->expires_at(deadline_);
    Write();
  }

  void Cancel() {
    cancelled_ = true;
    if (stream_ != nullptr) stream_->cancel();
  }

 private:
  void Connect() {
    reused_ = false;
    stream_ = std::make_unique<beast::tcp_stream>(parts_.io);
    stream_->expires_at(deadline_);
    stream_->async_connect(parts_.endpoints,
                           [self = shared_from_this()](beast::error_code error, const auto&) {
                             if (error) return self->Fail("UNREACHABLE", error);
                             beast::error_code ignored;
                             self->stream_->socket().set_option(tcp::no_delay(true), ignored);
                             self->Write();
                           });
  }

  void Write() {
    http::async_write(*stream_, request_,
                      [self = shared_from_this()](beast::error_code error, size_t) {
                        if (error && self->reused_ && !self->cancelled_) return self->Connect();
                        if (error) return self->Fail("CONNECTION LOST", error);
                        self->ReadHeader();
                      });
  }

  void ReadHeader() {
    parser_.emplace();
    parser_->body_limit(std::numeric_limits<uint64_t>::max());  // Boost 1.74 reads "none" as 0
    // One piece at a time: an eager parser keeps a whole chunk back until the next one begins.
    parser_->eager(false);
    http::async_read_header(*stream_, buffer_, *parser_,
                            [self = shared_from_this()](beast::error_code error, size_t bytes) {
                              // A server may close an idle connection just as it is used again.
                              if (error && self->reused_ && bytes == 0 && !self->cancelled_ &&
                                  error != beast::error::timeout) {
                                self->buffer_.clear();
                                return self->Connect();
                              }
                              if (error) return self->Fail("CONNECTION LOST", error);
                              self->ReadBody();
                            });
  }

  void ReadBody() {
    if (parser_->is_done() || !answer_.error_kind.empty()) return End();
    parser_->get().body().data = chunk_;
    parser_->get().body().size = sizeof chunk_;
    parser_->get().body().more = true;
    http::async_read_some(*stream_, buffer_, *parser_,
                          [self = shared_from_this()](beast::error_code error, size_t) {
                            if (error == http::error::need_buffer) error = {};
                            self->Take();
                            if (error) return self->Fail("CONNECTION LOST", error);
                            self->ReadBody();
                          });
  }

  bool IsEventStream() {
    return parser_->get().result_int() == 200 &&
           absl::StartsWith(std::string(parser_->get()[http::field::content_type]),
                            "text/event-stream");
  }

  void Take() {
    const std::string_view bytes(chunk_, sizeof chunk_ - parser_->get().body().size);
    if (!IsEventStream()) {
      other_body_.append(bytes.substr(0, kMaxErrorBytes - other_body_.size()));
      return;
    }
    const BenchTime now = std::chrono::steady_clock::now();
    const bool small = sse_.Feed(bytes, [this, now](std::string_view data) {
      parts_.arrived_tokens += reader_.Read(data, now, &answer_);
      if (!parts_.options.keep_answers) answer_.text.clear();
    });
    if (!small && answer_.error_kind.empty()) {
      answer_.error_kind = "NOT JSON";
      answer_.error = "an event of more than 16 MiB";
    }
  }

  void End() {
    const unsigned code = parser_->get().result_int();
    if (code != 200) {
      answer_.error_kind = absl::StrCat("HTTP ", code);
      answer_.error = OneLine(other_body_);
    } else if (!IsEventStream()) {
      answer_.error_kind = "NOT A STREAM";
      answer_.error = absl::StrFormat("the answer is %s, not text/event-stream: %s",
                                      std::string(parser_->get()[http::field::content_type]),
                                      OneLine(other_body_));
    } else {
      reader_.End(&answer_);
    }
    if (parts_.options.keep_alive && parser_->keep_alive() && answer_.error_kind.empty()) {
      stream_->expires_never();
      parts_.idle.push_back(std::move(stream_));
    }
    Done();
  }

  void Fail(const char* kind, const beast::error_code& error) {
    if (answer_.error_kind.empty()) {
      answer_.error_kind = cancelled_                       ? "CANCELLED"
                           : error == beast::error::timeout ? "TIMEOUT"
                                                            : kind;
      answer_.error = absl::StrFormat("%s:%s: %s, after %d tokens", parts_.url.host,
                                      parts_.url.port, error.message(), answer_.ArrivedTokens());
    }
    Done();
  }

  void Done() {
    answer_.finished = std::chrono::steady_clock::now();
    parts_.done.push_back(std::move(answer_));
  }

  Parts& parts_;
  BenchAnswer answer_;
  BenchTime deadline_;
  std::unique_ptr<beast::tcp_stream> stream_;
  bool reused_ = false, cancelled_ = false;
  http::request<http::string_body> request_;
  beast::flat_buffer buffer_;
  std::optional<http::response_parser<http::buffer_body>> parser_;
  char chunk_[16384];
  SseParser sse_;
  CompletionReader reader_;
  std::string other_body_;  // of an answer that is no event stream
};

class HttpBenchClient final : public BenchClient {
 public:
  HttpBenchClient(Url url, const AskOptions& options) : work_(parts_.io.get_executor()) {
    parts_.url = std::move(url);
    parts_.options = options;
  }

  ~HttpBenchClient() override {
    CancelAll();
    work_.reset();
    parts_.io.run();  // every handler gets its cancellation
  }

  // Also finds the model's name.
  absl::Status Connect() {
    beast::error_code error;
    tcp::resolver resolver(parts_.io);
    parts_.endpoints = resolver.resolve(parts_.url.host, parts_.url.port, error);
    if (error) return Unreachable(error);
    // Also where the model's name is known: it tells an absent server from one that fails.
    std::string page;
    RETURN_IF_ERROR(Get("/v1/models", &page));
    if (!parts_.options.model.empty()) return absl::OkStatus();
    return FindModel(page);
  }

  const std::string& model() const { return parts_.options.model; }

  void Send(const BenchRequest& request, BenchTime due) override {
    auto call = std::make_shared<HttpCall>(parts_, request, due);
    parts_.calls.remove_if([](const std::weak_ptr<HttpCall>& c) { return c.expired(); });
    parts_.calls.push_back(call);
    call->Start();
  }

  void Poll(BenchTime until, std::vector<BenchAnswer>* answers) override {
    while (parts_.done.empty() && parts_.io.run_one_until(until) > 0) {
    }
    for (BenchAnswer& answer : parts_.done) answers->push_back(std::move(answer));
    parts_.done.clear();
  }

  void CancelAll() override {
    for (const std::weak_ptr<HttpCall>& weak : parts_.calls) {
      if (const auto call = weak.lock()) call->Cancel();
    }
  }

  int64_t arrived_tokens() const override { return parts_.arrived_tokens; }

 private:
  absl::Status Unreachable(const beast::error_code& error) const {
    return absl::UnavailableError(absl::StrFormat("no server answers at http://%s:%s: %s",
                                                  parts_.url.host, parts_.url.port,
                                                  error.message()));
  }

  // The body of a page, whatever the status: FindModel looks at what it is.
  absl::Status Get(const std::string& path, std::string* page) {
    beast::tcp_stream stream(parts_.io);
    stream.expires_after(kConnectTimeout);
    http::request<http::empty_body> request(http::verb::get, parts_.url.base + path, 11);
    request.set(http::field::host, parts_.url.host + ":" + parts_.url.port);
    request.keep_alive(false);
    beast::flat_buffer buffer;
    http::response<http::string_body> response;
    std::optional<beast::error_code> result;
    stream.async_connect(parts_.endpoints, [&](beast::error_code connected, const auto&) {
      if (connected) return result.emplace(connected), void();
      http::async_write(stream, request, [&](beast::error_code written, size_t) {
        if (written) return result.emplace(written), void();
        http::async_read(stream, buffer, response,
                         [&](beast::error_code read, size_t) { result.emplace(read); });
      });
    });
    while (!result.has_value()) parts_.io.run_one();
    if (*result) return Unreachable(*result);
    *page = std::move(response.body());
    return absl::OkStatus();
  }

  absl::Status FindModel(const std::string& page) {
    const auto json = nlohmann::json::parse(page, nullptr, /*allow_exceptions=*/false);
    const auto at = [](const nlohmann::json& object, const char* key) {
      return object.is_object() ? object.value(key, nlohmann::json()) : nlohmann::json();
    };
    const nlohmann::json list = at(json, "data");
    const nlohmann::json id = at(list.is_array() && !list.empty() ? list[0] : list, "id");
    if (id.is_string()) {
      parts_.options.model = id;
      return absl::OkStatus();
    }
    return absl::FailedPreconditionError(absl::StrFormat(
        "GET %s/v1/models names no model (%s): is this an OpenAI-compatible server? If it is, name "
        "the model with --model",
        parts_.url.base, OneLine(page)));
  }

  HttpCall::Parts parts_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BenchClient>> ConnectHttpBenchClient(const std::string& url,
                                                                    AskOptions* options) {
  ASSIGN_OR_RETURN(Url parsed, ParseUrl(url));
  auto client = std::make_unique<HttpBenchClient>(std::move(parsed), *options);
  RETURN_IF_ERROR(client->Connect());
  options->model = client->model();
  return client;
}

}  // namespace lapidary
