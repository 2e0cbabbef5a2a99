#include "common/listen_address.h"

#include <gtest/gtest.h>

namespace lapidary {
namespace {

TEST(ListenAddressTest, ReadsNamesAndBothFamilies) {
  const auto v4 = ParseListenAddress("127.0.0.1:50051");
  ASSERT_TRUE(v4.ok());
  EXPECT_EQ(v4->host, "127.0.0.1");
  EXPECT_EQ(v4->port, 50051);
  EXPECT_TRUE(v4->loopback());
  const auto v6 = ParseListenAddress("[::1]:0");
  ASSERT_TRUE(v6.ok());
  EXPECT_EQ(v6->host, "::1");
  EXPECT_TRUE(v6->loopback());
  EXPECT_EQ(v6->ToString(), "[::1]:0");
  EXPECT_TRUE(ParseListenAddress("localhost:1")->loopback());
  EXPECT_FALSE(ParseListenAddress("0.0.0.0:1")->loopback());
  EXPECT_FALSE(ParseListenAddress("128.0.0.1:1")->loopback());
}

TEST(ListenAddressTest, RefusesWhatIsNoAddress) {
  for (const char* bad : {"", "50051", "host", "host:", ":50051", "host:x", "host:-1", "host:65536",
                          "::1:50051", "[::1:50051", "host:99999999999999", "host: 1"}) {
    EXPECT_EQ(ParseListenAddress(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ListenAddressTest, ProbeSaysWhatIsWrong) {
  EXPECT_TRUE(ProbeListen({"127.0.0.1", 0}).ok());
  // 192.0.2.0/24 is documentation's: no interface has it.
  EXPECT_EQ(ProbeListen({"192.0.2.1", 0}).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace lapidary
