// UTF-8 by the strict table of RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lapidary::internal {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";             // U+2581, a space

inline constexpr int kUtf8Invalid = 0;
inline constexpr int kUtf8Truncated = -1;

// Length in bytes of the character that `text` (not empty) begins with. kUtf8Invalid when its first
// byte begins no character; kUtf8Truncated when more bytes could still complete one.
inline int Utf8Length(std::string_view text) {
  const auto byte = [&text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return kUtf8Invalid;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte carries the limits; the others are plain continuation bytes.
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size()) return kUtf8Truncated;
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xBF)) return kUtf8Invalid;
  }
  return static_cast<int>(length);
}

}  // namespace lapidary::internal
