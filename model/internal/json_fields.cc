#include "model/internal/json_fields.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/mapped_file.h"

namespace lapidary::internal {
namespace {

using nlohmann::json;

// What a message shows of a wrong value.
std::string Excerpt(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// Integers, and floats without a fraction ("256.0").
std::optional<int64_t> ToInt(const json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::abs(number) < 0x1p53 && number == std::floor(number)) {
      return static_cast<int64_t>(number);
    }
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<json> ParseJsonObject(const char* text, size_t bytes, const std::string& file) {
  json root = json::parse(text, text + bytes, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is not valid JSON", file));
  }
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is not a JSON object", file));
  }
  return root;
}

absl::StatusOr<json> ReadJsonObject(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  return ParseJsonObject(reinterpret_cast<const char*>(file->data()),
                         static_cast<size_t>(file->size()), path);
}

const json* JsonFields::Get(const char* key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::Has(const char* key) const { return Get(key) != nullptr; }

absl::Status JsonFields::Bad(const char* key, const std::string& what) const {
  return absl::InvalidArgumentError(absl::StrFormat("%s %s", where(key), what));
}

absl::StatusOr<const json*> JsonFields::Object(const char* key) const {
  const json* const value = Get(key);
  if (value != nullptr && !value->is_object()) {
    return Bad(key, absl::StrFormat("is %s, expected an object", Excerpt(*value)));
  }
  return value;
}

absl::StatusOr<int64_t> JsonFields::Int(const char* key, int64_t absent, int64_t low,
                                        int64_t high) const {
  const json* const value = Get(key);
  if (value == nullptr) return absent;
  const std::optional<int64_t> number = ToInt(*value);
  if (!number || *number < low || *number > high) {
    return Bad(key, absl::StrFormat("is %s, expected a whole number from %d to %d", Excerpt(*value),
                                    low, high));
  }
  return *number;
}

absl::StatusOr<double> JsonFields::Float(const char* key, double absent, double low,
                                         double high) const {
  const json* const value = Get(key);
  if (value == nullptr) return absent;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= low && number <= high)) {
    return Bad(
        key, absl::StrFormat("is %s, expected a number from %g to %g", Excerpt(*value), low, high));
  }
  return number;
}

absl::StatusOr<bool> JsonFields::Bool(const char* key, bool absent) const {
  const json* const value = Get(key);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) {
    return Bad(key, absl::StrFormat("is %s, expected true or false", Excerpt(*value)));
  }
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonFields::String(const char* key, const std::string& absent) const {
  const json* const value = Get(key);
  if (value == nullptr) return absent;
  if (!value->is_string()) {
    return Bad(key, absl::StrFormat("is %s, expected a string", Excerpt(*value)));
  }
  return value->get<std::string>();
}

absl::StatusOr<std::vector<TokenId>> JsonFields::TokenIds(const char* key) const {
  std::vector<TokenId> ids;
  const json* const value = Get(key);
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& item : list) {
    const std::optional<int64_t> id = ToInt(item);
    if (!id || *id < 0 || *id > std::numeric_limits<TokenId>::max()) {
      return Bad(key, absl::StrFormat("has %s, expected token ids", Excerpt(item)));
    }
    ids.push_back(static_cast<TokenId>(*id));
  }
  return ids;
}

}  // namespace lapidary::internal
