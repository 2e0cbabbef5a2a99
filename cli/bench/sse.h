// Server-sent events, as OpenAI-compatible servers stream their answers.
#pragma once
#include <functional>
#include <string>
#include <string_view>

namespace lapidary {

// Takes the bytes of a stream in any pieces and gives out whole events: the text of their `data`
// fields, several lines of one event joined with '\n'. Lines end in LF, CRLF or CR. Other fields
// and comments are skipped; an event cut off by the end of the stream is not given out (HTML
// standard, "Server-sent events").
class SseParser {
 public:
  // Returns false when an event passes `max_event_bytes`: nothing after it is read.
  bool Feed(std::string_view bytes, const std::function<void(std::string_view data)>& on_event);

  size_t max_event_bytes = size_t{1} << 24;

 private:
  void EndLine(const std::function<void(std::string_view)>& on_event);

  std::string line_;  // of which the end has not come yet
  std::string data_;  // of the event
  bool has_data_ = false;
  bool after_cr_ = false;  // an LF that follows belongs to that line end
};

}  // namespace lapidary
