// Finds stop strings in text that arrives in pieces, holding back what might still become one.
#pragma once
#include <bitset>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

class StopMatcher {
 public:
  // Stops are not empty. include_stop keeps the stop string in the text.
  StopMatcher(std::vector<std::string> stops, bool include_stop);

  struct Result {
    std::string text;  // certain to be shown
    int stop = -1;     // index of the stop string that ended it, or -1
  };
  // The stop that is complete first wins, the longest of those that end at the same byte: this does
  // not depend on how the text was cut into pieces. After a match nothing more may be pushed.
  Result Push(std::string_view piece) {
    Result result;
    result.stop = Push(piece, &result.text);
    return result;
  }
  // The same, the text appended; returns the stop.
  int Push(std::string_view piece, std::string* text);
  // The end of the text: what was held back.
  std::string Flush();

 private:
  const std::vector<std::string> stops_;
  const bool include_stop_;
  std::bitset<256> first_bytes_;  // of the stops: text without any of them passes at once
  std::string held_;              // a proper prefix of some stop
};

}  // namespace lapidary
