// Where in a kernel something happens: a defaulted argument, so that the caller writes nothing.
#pragma once

namespace lapidary::simt {

struct Site {
  const char* file = nullptr;
  int line = 0;

  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& o) const { return line == o.line && file == o.file; }
};

}  // namespace lapidary::simt
