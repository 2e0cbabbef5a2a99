// Gemma 4's form of a function schema. The order of its parts, what it leaves out, and its odd
// corners (a missing brace without a type) are the template's: the models saw exactly this.
#include <algorithm>
#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/internal/chat_format_values.h"

namespace lapidary::internal {
namespace {

absl::Status NotA(std::string_view where, std::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrFormat("%s is not %s", where, wanted));
}

// {{ value | upper }}, empty for undefined.
std::string UpperText(const Json* value) {
  return value == nullptr ? std::string() : AsciiUpper(PythonText(*value));
}

class DeclarationWriter {
 public:
  explicit DeclarationWriter(PromptWriter* out) : out_(*out) {}

  absl::Status Write(const Json& function, std::string_view where) {
    const Json* name = Member(&function, "name");
    if (name == nullptr || !name->is_string() || !IsTrue(name)) {
      return NotA(absl::StrFormat("%s.name", where), "a string with the function's name");
    }
    out_.Syntax("declaration:");
    out_.Data(PythonText(*name));
    out_.Syntax("{description:");
    const Json* description = Member(&function, "description");
    out_.Quoted(description == nullptr ? "" : PythonText(*description));
    const Json* parameters = Member(&function, "parameters");
    if (IsTrue(parameters)) {
      RETURN_IF_ERROR(Parameters(*parameters, absl::StrFormat("%s.parameters", where)));
    }
    if (const Json* response = Member(&function, "response")) {
      out_.Syntax(",response:{");
      const Json* text = Member(response, "description");
      if (IsTrue(text)) {
        out_.Syntax("description:");
        out_.Quoted(PythonText(*text));
        out_.Syntax(",");
      }
      if (UpperText(Member(response, "type")) == "OBJECT") {
        out_.Syntax("type:<|\"|>OBJECT<|\"|>}");
      }
    }
    out_.Syntax("}");
    return absl::OkStatus();
  }

 private:
  absl::Status Parameters(const Json& parameters, const std::string& where) {
    if (!parameters.is_object()) return NotA(where, "an object");
    out_.Syntax(",parameters:{");
    const Json* properties = Member(&parameters, "properties");
    if (IsTrue(properties)) {
      out_.Syntax("properties:{");
      RETURN_IF_ERROR(Properties(*properties, where + ".properties", /*skip_standard=*/false));
      out_.Syntax("},");
    }
    const Json* required = Member(&parameters, "required");
    if (IsTrue(required)) {
      RETURN_IF_ERROR(Required(*required, where + ".required"));
      out_.Syntax(",");
    }
    const Json* type = Member(&parameters, "type");
    if (IsTrue(type)) {
      out_.Syntax("type:");
      out_.Quoted(UpperText(type));
      out_.Syntax("}");
    }
    return absl::OkStatus();
  }

  absl::Status Required(const Json& required, const std::string& where) {
    if (!required.is_array()) return NotA(where, "a list of names");
    out_.Syntax("required:[");
    for (size_t i = 0; i < required.size(); ++i) {
      if (i > 0) out_.Syntax(",");
      out_.Quoted(PythonText(required[i]));
    }
    out_.Syntax("]");
    return absl::OkStatus();
  }

  // `skip_standard`: `properties` is an object schema without a "properties" of its own, whose
  // other keys are shown in their place.
  absl::Status Properties(const Json& properties, const std::string& where, bool skip_standard) {
    static constexpr std::array<std::string_view, 5> kStandard = {
        "description", "type", "properties", "required", "nullable"};
    if (!properties.is_object()) return NotA(where, "an object");
    bool first = true;
    for (const auto& [key, schema] : SortedMembers(properties)) {
      if (skip_standard && std::find(kStandard.begin(), kStandard.end(), key) != kStandard.end()) {
        continue;
      }
      if (!first) out_.Syntax(",");
      first = false;
      out_.Data(key);
      out_.Syntax(":{");
      RETURN_IF_ERROR(Property(schema, absl::StrFormat("%s.%s", where, key)));
    }
    return absl::OkStatus();
  }

  absl::Status Property(const Json* schema, const std::string& where) {
    bool comma = false;
    const auto part = [&](std::string_view opening) {
      if (comma) out_.Syntax(",");
      comma = true;
      out_.Syntax(opening);
    };
    const Json* description = Member(schema, "description");
    if (IsTrue(description)) {
      part("description:");
      out_.Quoted(PythonText(*description));
    }
    const std::string type = UpperText(Member(schema, "type"));
    const Json* choices = Member(schema, "enum");
    const Json* items = Member(schema, "items");
    if (type == "STRING" && IsTrue(choices)) {
      part("enum:");
      out_.Value(*choices, /*quoted_keys=*/true);
    } else if (type == "ARRAY" && IsTrue(items) && items->is_object()) {
      part("items:{");
      RETURN_IF_ERROR(Items(*items, where + ".items"));
      out_.Syntax("}");
    }
    if (IsTrue(Member(schema, "nullable"))) part("nullable:true");
    if (type == "OBJECT") {
      const Json* properties = Member(schema, "properties");
      const bool own = properties != nullptr && properties->is_object();
      part("properties:{");
      RETURN_IF_ERROR(own ? Properties(*properties, where + ".properties", false)
                          : Properties(*schema, where, true));
      out_.Syntax("}");
      const Json* required = Member(schema, "required");
      if (IsTrue(required)) {
        part("");
        RETURN_IF_ERROR(Required(*required, where + ".required"));
      }
    }
    part("type:");
    out_.Quoted(type);
    out_.Syntax("}");
    return absl::OkStatus();
  }

  // What an array holds: as a schema for the keys that matter, as plain values for the others.
  absl::Status Items(const Json& items, const std::string& where) {
    bool first = true;
    for (const auto& [key, value] : SortedMembers(items)) {
      if (value->is_null()) continue;
      if (!first) out_.Syntax(",");
      first = false;
      if (key == "properties") {
        out_.Syntax("properties:{");
        if (value->is_object()) {
          RETURN_IF_ERROR(Properties(*value, where + ".properties", /*skip_standard=*/false));
        }
        out_.Syntax("}");
      } else if (key == "required") {
        RETURN_IF_ERROR(Required(*value, where + ".required"));
      } else if (key == "type") {
        out_.Syntax("type:");
        if (value->is_array()) {
          Json upper = Json::array();
          for (const Json& name : *value) upper.push_back(AsciiUpper(PythonText(name)));
          out_.Value(upper, /*quoted_keys=*/true);
        } else if (value->is_string()) {
          out_.Quoted(UpperText(value));
        } else {
          return NotA(where + ".type", "a string or a list of them");
        }
      } else {
        out_.Data(key);
        out_.Syntax(":");
        out_.Value(*value, /*quoted_keys=*/true);
      }
    }
    return absl::OkStatus();
  }

  PromptWriter& out_;
};

}  // namespace

absl::Status WriteDeclaration(const Json& tool, std::string_view where, PromptWriter* out) {
  // {"type": "function", "function": {...}}, or the inner object alone.
  const Json* inner = Member(&tool, "function");
  if (inner != nullptr) {
    return DeclarationWriter(out).Write(*inner, absl::StrFormat("%s.function", where));
  }
  return DeclarationWriter(out).Write(tool, where);
}

}  // namespace lapidary::internal
