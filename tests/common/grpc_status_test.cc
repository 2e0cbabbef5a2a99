#include "common/grpc_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error_details.h"
#include "google/rpc/error_details.pb.h"

namespace lapidary {
namespace {

using ::testing::HasSubstr;

TEST(GrpcStatusTest, EveryCodeComesBack) {
  EXPECT_TRUE(FromGrpcStatus(ToGrpcStatus(absl::OkStatus())).ok());
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(ToGrpcStatus(status).error_code(), code);
    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
  }
}

TEST(GrpcStatusTest, DetailsTravel) {
  absl::Status status = BadRequestError({{"n", "is 65"}, {"sampling.top_p", "is 2"}});
  EXPECT_EQ(status.message(), "n: is 65; sampling.top_p: is 2");
  status = WithRetryAfter(std::move(status), absl::Milliseconds(1500));
  status = WithReason(std::move(status), "SOME_REASON", {{"rank", "1"}});
  status = WithResource(std::move(status), "model", "gpt");
  const grpc::Status sent = ToGrpcStatus(status);
  // What clients of other languages parse.
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(sent.error_details()));
  EXPECT_EQ(rich.code(), 3);
  EXPECT_EQ(rich.message(), sent.error_message());
  ASSERT_EQ(rich.details_size(), 4);
  for (const auto& detail : rich.details()) {
    EXPECT_THAT(detail.type_url(), HasSubstr("type.googleapis.com/google.rpc."));
  }
  const absl::Status back = FromGrpcStatus(sent);
  ASSERT_EQ(BadFields(back).size(), 2u);
  EXPECT_EQ(BadFields(back)[1].field, "sampling.top_p");
  EXPECT_EQ(RetryAfter(back), absl::Milliseconds(1500));
  EXPECT_EQ(Reason(back), "SOME_REASON");
  EXPECT_EQ(ResourceName(back), "gpt");
}

TEST(GrpcStatusTest, NothingTooBigForTrailersIsSent) {
  std::vector<FieldViolation> many(1000, FieldViolation{"field", std::string(50, 'x')});
  const grpc::Status sent = ToGrpcStatus(BadRequestError(many));
  EXPECT_LE(sent.error_message().size() + sent.error_details().size(), 8000u);
  EXPECT_EQ(sent.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const grpc::Status large = ToGrpcStatus(absl::InternalError(std::string(100000, 'x')));
  EXPECT_LE(large.error_message().size(), 3000u);
}

TEST(GrpcStatusTest, BrokenDetailsAreDropped) {
  const absl::Status status =
      FromGrpcStatus(grpc::Status(grpc::StatusCode::UNAVAILABLE, "away", "\xff\xff garbage"));
  EXPECT_EQ(status, absl::UnavailableError("away"));
  EXPECT_FALSE(RetryAfter(status));
  EXPECT_TRUE(BadFields(status).empty());
}

TEST(ErrorDetailsTest, AnOkStatusStaysOk) {
  EXPECT_TRUE(WithReason(absl::OkStatus(), "X").ok());
  EXPECT_TRUE(WithRetryAfter(absl::OkStatus(), absl::Seconds(1)).ok());
}

}  // namespace
}  // namespace lapidary
