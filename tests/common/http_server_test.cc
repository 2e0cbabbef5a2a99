#include "common/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/support/http_fetch.h"

namespace lapidary {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<HttpServer> StartServer() {
  auto server =
      HttpServer::Start(ListenAddress{"127.0.0.1", 0},
                        {{"/metrics",
                          [] {
                            return HttpResponse{200, "a 1\n", "text/plain; version=0.0.4"};
                          }},
                         {"/readyz",
                          [] {
                            return HttpResponse{503, "loading\n"};
                          }},
                         {"/big", [] {
                            return HttpResponse{200, std::string(1 << 20, 'x')};
                          }}});
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

TEST(HttpServerTest, ServesItsPaths) {
  const auto server = StartServer();
  const HttpReply metrics = HttpGet(server->port(), "/metrics");
  EXPECT_EQ(metrics.status, 200);
  EXPECT_EQ(metrics.body, "a 1\n");
  EXPECT_THAT(metrics.head, HasSubstr("text/plain; version=0.0.4"));
  EXPECT_EQ(HttpGet(server->port(), "/readyz").status, 503);
  EXPECT_EQ(HttpGet(server->port(), "/metrics?name=a").status, 200);
  EXPECT_EQ(HttpGet(server->port(), "/").status, 404);
  EXPECT_EQ(HttpGet(server->port(), "/big").body.size(), 1u << 20);
}

TEST(HttpServerTest, KeepsAConnectionOpenForSeveralRequests) {
  const auto server = StartServer();
  const std::string twice =
      "GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n"
      "GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
  const std::string reply = Exchange(server->port(), twice);
  EXPECT_NE(reply.find("a 1\n"), reply.rfind("a 1\n"));
}

TEST(HttpServerTest, OtherMethodsAndHeadAnswerAsHttpSays) {
  const auto server = StartServer();
  EXPECT_THAT(Exchange(server->port(), "DELETE /metrics HTTP/1.1\r\nConnection: close\r\n\r\n"),
              HasSubstr("405"));
  const std::string head =
      Exchange(server->port(), "HEAD /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("200"));
  EXPECT_EQ(head.find("a 1"), std::string::npos);
}

TEST(HttpServerTest, NonsenseClosesTheConnectionOnly) {
  const auto server = StartServer();
  Exchange(server->port(), std::string("\x16\x03\x01\x02\x00 this is TLS\r\n\r\n", 21));
  Exchange(server->port(), "GET /metrics HTTP/1.1\r\nX: " + std::string(100000, 'h') + "\r\n\r\n");
  EXPECT_EQ(HttpGet(server->port(), "/metrics").status, 200);
}

TEST(HttpServerTest, ASilentClientHoldsUpNeitherOthersNorTheEnd) {
  auto server = StartServer();
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(server->port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  std::vector<std::thread> others;
  for (int i = 0; i < 4; ++i) {
    others.emplace_back([&] { EXPECT_EQ(HttpGet(server->port(), "/metrics").status, 200); });
  }
  for (std::thread& t : others) t.join();
  server.reset();  // returns although fd is open
  char byte;
  EXPECT_LE(recv(fd, &byte, 1, 0), 0);
  close(fd);
}

TEST(HttpServerTest, APortInUseIsAnError) {
  const auto server = StartServer();
  const auto second = HttpServer::Start(ListenAddress{"127.0.0.1", server->port()}, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(
      std::string(second.status().message()),
      HasSubstr("127.0.0.1:" + std::to_string(server->port()) + ": Address already in use"));
}

}  // namespace
}  // namespace lapidary
