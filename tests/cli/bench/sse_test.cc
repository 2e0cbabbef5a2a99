#include "cli/bench/sse.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lapidary {
namespace {

std::vector<std::string> Parse(const std::vector<std::string>& pieces) {
  SseParser parser;
  std::vector<std::string> events;
  for (const std::string& piece : pieces) {
    EXPECT_TRUE(
        parser.Feed(piece, [&events](std::string_view data) { events.emplace_back(data); }));
  }
  return events;
}

// Comments, other fields, several data lines, an empty one, no space, a cut-off event at the end.
constexpr char kStream[] =
    ": hello\n\ndata: {\"a\": 1}\n\ndata:no space\r\n\r\nevent: x\nid: 3\ndata: one\ndata:  two\n\n"
    "data\n\n\n\ndata: [DONE]\r\rdata: cut off\n";
const std::vector<std::string> kEvents = {"{\"a\": 1}", "no space", "one\n two", "", "[DONE]"};

TEST(Sse, ReadsEventsInOnePiece) { EXPECT_EQ(Parse({kStream}), kEvents); }

TEST(Sse, ReadsTheSameEventsWhereverTheStreamIsCut) {
  const std::string stream = kStream;
  for (size_t a = 0; a <= stream.size(); ++a) {
    for (size_t b = a; b <= stream.size(); ++b) {
      ASSERT_EQ(Parse({stream.substr(0, a), stream.substr(a, b - a), stream.substr(b)}), kEvents)
          << "cut at " << a << " and " << b;
    }
  }
}

TEST(Sse, ReadsBytesOneByOne) {
  std::vector<std::string> pieces;
  for (const char c : std::string(kStream)) pieces.emplace_back(1, c);
  EXPECT_EQ(Parse(pieces), kEvents);
}

TEST(Sse, RefusesAnEventWithoutEnd) {
  SseParser parser;
  parser.max_event_bytes = 1000;
  const std::string piece(100, 'x');
  int fed = 0;
  while (fed < 20 && parser.Feed(piece, [](std::string_view) { FAIL(); })) ++fed;
  EXPECT_EQ(fed, 10);
}

}  // namespace
}  // namespace lapidary
