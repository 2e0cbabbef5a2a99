#include "coordinator/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace lapidary {
namespace {

struct Outcome {
  std::string text;
  int stop = -1;
  size_t used = 0;  // bytes pushed until the stop was complete
};

// Pushes `text` in pieces of the given sizes (the last repeats).
Outcome Cut(const std::vector<std::string>& stops, const std::string& text,
            const std::vector<size_t>& sizes, bool include = false) {
  StopMatcher matcher(stops, include);
  Outcome out;
  size_t piece = 0;
  while (out.used < text.size()) {
    const size_t n = std::min(sizes[std::min(piece, sizes.size() - 1)], text.size() - out.used);
    ++piece;
    const StopMatcher::Result result = matcher.Push(text.substr(out.used, n));
    out.used += n;
    out.text += result.text;
    if (result.stop >= 0) {
      out.stop = result.stop;
      return out;
    }
  }
  out.text += matcher.Flush();
  return out;
}

TEST(StopMatcherTest, CutsAtTheStop) {
  EXPECT_EQ(Cut({"END"}, "one END two", {100}).text, "one ");
  EXPECT_EQ(Cut({"END"}, "one END two", {100}, true).text, "one END");
  EXPECT_EQ(Cut({"END"}, "one EN", {100}).text, "one EN");
  EXPECT_EQ(Cut({"END"}, "one EN", {100}).stop, -1);
}

TEST(StopMatcherTest, HoldsBackOnlyWhatCouldBecomeAStop) {
  StopMatcher matcher({"END"}, false);
  EXPECT_EQ(matcher.Push("aE").text, "a");
  EXPECT_EQ(matcher.Push("N").text, "");
  EXPECT_EQ(matcher.Push("EN").text, "EN");  // "ENEN": the first EN is free
  EXPECT_EQ(matcher.Push("x").text, "ENx");
  EXPECT_EQ(matcher.Push("E").text, "");
  EXPECT_EQ(matcher.Flush(), "E");
}

TEST(StopMatcherTest, TheStopThatIsCompleteFirstWins) {
  EXPECT_EQ(Cut({"abcd", "bc"}, "xabcd", {100}).stop, 1);
  EXPECT_EQ(Cut({"abcd", "bc"}, "xabcd", {100}).text, "xa");
  // Both end at the same byte: the longer one cuts more.
  EXPECT_EQ(Cut({"c", "abc"}, "xabc", {100}).stop, 1);
  EXPECT_EQ(Cut({"c", "abc"}, "xabc", {1}).stop, 1);
}

// Brute force: the first end position of any stop; among those the earliest beginning.
Outcome Reference(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    Outcome best;
    size_t best_length = 0;
    for (size_t i = 0; i < stops.size(); ++i) {
      const size_t n = stops[i].size();
      if (n <= end && n > best_length && text.compare(end - n, n, stops[i]) == 0) {
        best_length = n;
        best.stop = static_cast<int>(i);
        best.text = text.substr(0, end - n);
      }
    }
    if (best.stop >= 0) return best;
  }
  return Outcome{text, -1, text.size()};
}

TEST(StopMatcherTest, PiecesDoNotMatter) {
  std::mt19937 random(3);
  const auto draw = [&](size_t low, size_t high) { return low + random() % (high - low + 1); };
  const auto word = [&](size_t n) {
    std::string s;
    while (s.size() < n) s.push_back("ab"[random() % 2]);
    return s;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = draw(1, 3); i > 0; --i) {
      std::string stop = word(draw(1, 5));
      if (std::find(stops.begin(), stops.end(), stop) == stops.end()) stops.push_back(stop);
    }
    const std::string text = word(draw(0, 14));
    std::vector<size_t> sizes;
    for (int i = 0; i < 8; ++i) sizes.push_back(draw(1, 4));
    const Outcome want = Reference(stops, text), got = Cut(stops, text, sizes);
    ASSERT_EQ(got.text, want.text) << "round " << round << " text " << text;
    ASSERT_EQ(got.stop, want.stop) << "round " << round << " text " << text;
  }
}

}  // namespace
}  // namespace lapidary
