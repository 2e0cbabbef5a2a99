#include "coordinator/trace_context.h"

#include <gtest/gtest.h>

namespace lapidary {
namespace {

constexpr char kGood[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceContextTest, ReadsAndMakesAChild) {
  const TraceContext trace = ParseTraceparent(kGood);
  EXPECT_EQ(trace.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(trace.Child(255), "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ff-01");
}

TEST(TraceContextTest, NonsenseCountsAsAbsent) {
  const std::string good = kGood;
  EXPECT_TRUE(ParseTraceparent("").empty());
  EXPECT_TRUE(ParseTraceparent(good + "0").empty());
  EXPECT_TRUE(ParseTraceparent("01" + good.substr(2)).empty());
  for (const size_t at : {2u, 5u, 35u, 40u, 52u, 54u}) {
    std::string bad = good;
    bad[at] = 'Z';
    EXPECT_TRUE(ParseTraceparent(bad).empty()) << bad;
  }
  EXPECT_TRUE(ParseTraceparent("00-" + std::string(32, '0') + good.substr(35)).empty());
  EXPECT_EQ(TraceContext{}.Child(1), "");
}

}  // namespace
}  // namespace lapidary
