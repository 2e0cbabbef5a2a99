#include "model/internal/chat_format_values.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "model/tokenizer_utf8.h"

namespace lapidary::internal {
namespace {

// Printing recurses; no schema or argument of use is deeper.
constexpr size_t kMaxDepth = 100;
// Objects find their keys by looking through them.
constexpr size_t kMaxMembers = 4096;

// Builds a Json from the parser's events: the only way to see a number's own digits.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t& digits) override {
    if (digits.find_first_of(".eE") != string_t::npos) return Put(value);
    return Put(Json::binary(std::vector<uint8_t>(digits.begin(), digits.end())));
  }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // JSON text has none
  bool key(string_t& value) override {
    if (open_.back()->size() == kMaxMembers) {
      error_ = absl::StrFormat("an object with more than %d members", kMaxMembers);
      return false;
    }
    key_ = std::move(value);
    return true;
  }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    error_ = error.what();
    return false;
  }

  Json Take() { return std::move(root_); }
  const std::string& error() const { return error_; }

 private:
  bool Put(Json value) {
    Place(std::move(value));
    return true;
  }
  Json* Place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& member = parent[key_];
    member = std::move(value);
    return &member;
  }
  bool Open(Json empty) {
    if (open_.size() == kMaxDepth) {
      error_ = absl::StrFormat("nested deeper than %d", kMaxDepth);
      return false;
    }
    open_.push_back(Place(std::move(empty)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  // From the root to where the next value goes. A parent does not grow while a child is open, so
  // the pointers hold.
  std::vector<Json*> open_;
  std::string key_;
  std::string error_;
};

// repr(float): the shortest digits that read back, plain from 1e-4 up to 1e16.
std::string PythonFloat(double value) {
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string_view text(buffer, end - buffer);
  std::string out;
  if (text[0] == '-') {
    out = "-";
    text.remove_prefix(1);
  }
  const size_t e = text.find('e');
  int exponent = 0;
  const size_t sign = text[e + 1] == '+' ? 1 : 0;
  std::from_chars(text.data() + e + 1 + sign, text.data() + text.size(), exponent);
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (digits.size() > 1) out += "." + digits.substr(1);
    return out + absl::StrFormat("e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(-exponent - 1, '0') + digits;
  const size_t whole = exponent + 1;
  if (digits.size() < whole) digits.append(whole - digits.size(), '0');
  out += digits.substr(0, whole) + ".";
  return out + (digits.size() > whole ? digits.substr(whole) : "0");
}

// repr(str)
std::string PythonQuoted(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      out += absl::StrFormat("\\x%02x", byte);
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string PythonRepr(const Json& value) {
  if (value.is_string()) return PythonQuoted(value.get_ref<const std::string&>());
  if (value.is_array()) {
    std::string out = "[";
    for (size_t i = 0; i < value.size(); ++i) out += (i ? ", " : "") + PythonRepr(value[i]);
    return out + "]";
  }
  if (value.is_object()) {
    std::string out = "{";
    for (const auto& item : value.items()) {
      if (out.size() > 1) out += ", ";
      out += PythonQuoted(item.key()) + ": " + PythonRepr(item.value());
    }
    return out + "}";
  }
  return PythonText(value);
}

uint32_t CodePoint(std::string_view character) {
  uint32_t code = static_cast<uint8_t>(character[0]);
  if (character.size() > 1) code &= 0x7F >> character.size();
  for (size_t i = 1; i < character.size(); ++i) {
    code = code << 6 | (static_cast<uint8_t>(character[i]) & 0x3F);
  }
  return code;
}

// str.isspace() of one character.
bool IsSpace(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

// Lower case where the scripts with case put it at a fixed distance: Latin-1, Greek, Cyrillic.
uint32_t LowerCodePoint(uint32_t code) {
  if (code >= 'A' && code <= 'Z') return code + 32;
  if (code >= 0xC0 && code <= 0xDE && code != 0xD7) return code + 32;
  if (code >= 0x100 && code <= 0x12F) return code | 1;
  if (code >= 0x391 && code <= 0x3A9 && code != 0x3A2) return code + 32;
  if (code >= 0x410 && code <= 0x42F) return code + 32;
  if (code >= 0x400 && code <= 0x40F) return code + 80;
  return code;
}

std::u32string SortKey(std::string_view text) {
  std::u32string key;
  while (!text.empty()) {
    const int length = std::max(1, Utf8Length(text));
    key += static_cast<char32_t>(LowerCodePoint(CodePoint(text.substr(0, length))));
    text.remove_prefix(length);
  }
  return key;
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view where) {
  Builder builder;
  if (Json::sax_parse(text.begin(), text.end(), &builder)) return builder.Take();
  return absl::InvalidArgumentError(absl::StrFormat("%s: %s", where, builder.error()));
}

std::string PythonText(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
    case Json::value_t::discarded:
      return "None";
    case Json::value_t::boolean:
      return value.get<bool>() ? "True" : "False";
    case Json::value_t::string:
      return value.get<std::string>();
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return value.dump();
    case Json::value_t::number_float:
      return PythonFloat(value.get<double>());
    case Json::value_t::binary:
      return std::string(value.get_binary().begin(), value.get_binary().end());
    case Json::value_t::array:
    case Json::value_t::object:
      return PythonRepr(value);
  }
  return {};
}

bool IsTrue(const Json* value) {
  if (value == nullptr || value->is_null()) return false;
  if (value->is_boolean()) return value->get<bool>();
  if (value->is_number()) return value->get<double>() != 0;
  if (value->is_string()) return !value->get_ref<const std::string&>().empty();
  return value->is_binary() || !value->empty();
}

const Json* Member(const Json* value, std::string_view key) {
  if (value == nullptr || !value->is_object()) return nullptr;
  const auto found = value->find(std::string(key));
  return found == value->end() ? nullptr : &*found;
}

std::vector<std::pair<std::string_view, const Json*>> SortedMembers(const Json& object) {
  using Row = std::pair<std::u32string, std::pair<std::string_view, const Json*>>;
  std::vector<Row> rows;
  for (auto it = object.begin(); it != object.end(); ++it) {
    rows.push_back({SortKey(it.key()), {it.key(), &it.value()}});
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.first < b.first; });
  std::vector<std::pair<std::string_view, const Json*>> members;
  for (const Row& row : rows) members.push_back(row.second);
  return members;
}

std::string_view Strip(std::string_view text) {
  while (!text.empty()) {
    const int length = Utf8Length(text);
    if (length <= 0 || !IsSpace(CodePoint(text.substr(0, length)))) break;
    text.remove_prefix(length);
  }
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    const std::string_view last = text.substr(begin);
    if (Utf8Length(last) != static_cast<int>(last.size()) || !IsSpace(CodePoint(last))) break;
    text.remove_suffix(last.size());
  }
  return text;
}

std::string AsciiUpper(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return out;
}

void PromptWriter::Append(std::string_view text, bool trusted) {
  if (text.empty()) return;
  if (segments_.empty() || segments_.back().trusted != trusted) {
    segments_.push_back(PromptSegment{std::string(), trusted});
  }
  segments_.back().text += text;
}

void PromptWriter::Quoted(std::string_view text) {
  Syntax("<|\"|>");
  Data(text);
  Syntax("<|\"|>");
}

void PromptWriter::Value(const Json& value, bool quoted_keys) {
  if (value.is_null()) {
    Syntax("null");
  } else if (value.is_string()) {
    Quoted(value.get_ref<const std::string&>());
  } else if (value.is_boolean()) {
    Syntax(value.get<bool>() ? "true" : "false");
  } else if (value.is_object()) {
    Syntax("{");
    bool first = true;
    for (const auto& [key, member] : SortedMembers(value)) {
      if (!first) Syntax(",");
      first = false;
      if (quoted_keys) {
        Quoted(key);
      } else {
        Data(key);
      }
      Syntax(":");
      Value(*member, quoted_keys);
    }
    Syntax("}");
  } else if (value.is_array()) {
    Syntax("[");
    for (size_t i = 0; i < value.size(); ++i) {
      if (i > 0) Syntax(",");
      Value(value[i], quoted_keys);
    }
    Syntax("]");
  } else {
    Data(PythonText(value));
  }
}

void PromptWriter::Members(const Json& object, bool quoted_keys) {
  bool first = true;
  for (const auto& [key, member] : SortedMembers(object)) {
    if (!first) Syntax(",");
    first = false;
    Data(key);
    Syntax(":");
    Value(*member, quoted_keys);
  }
}

}  // namespace lapidary::internal
