// Typed, range-checked access to a JSON object from a file we do not trust.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"

namespace lapidary::internal {

// The root object of a JSON text; INVALID_ARGUMENT names `file` when it is none.
absl::StatusOr<nlohmann::json> ParseJsonObject(const char* text, size_t bytes,
                                               const std::string& file);
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path);

// Fields of one object. Absent and null are the same: both give the default.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  const nlohmann::json& object() const { return object_; }
  bool Has(const char* key) const;
  // The value, or null when there is none.
  const nlohmann::json* Get(const char* key) const;
  // A nested object; null when there is none, an error when it is no object.
  absl::StatusOr<const nlohmann::json*> Object(const char* key) const;

  absl::StatusOr<int64_t> Int(const char* key, int64_t absent, int64_t low, int64_t high) const;
  absl::StatusOr<double> Float(const char* key, double absent, double low, double high) const;
  absl::StatusOr<bool> Bool(const char* key, bool absent) const;
  absl::StatusOr<std::string> String(const char* key, const std::string& absent) const;
  // One id or a list of ids.
  absl::StatusOr<std::vector<TokenId>> TokenIds(const char* key) const;

  // "config.json: text_config.head_dim <what>"
  absl::Status Bad(const char* key, const std::string& what) const;
  std::string where(const char* key) const { return where_ + key; }

 private:
  const nlohmann::json& object_;
  const std::string where_;  // ends where a key's name goes on
};

}  // namespace lapidary::internal
