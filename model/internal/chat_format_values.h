// JSON values in a prompt: read without losing a number's form, printed as the templates print
// them.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/chat_format.h"

namespace lapidary::internal {

// Keeps the order of keys. An integer beyond 64 bits is kept as a binary value of its digits.
using Json = nlohmann::ordered_json;

// INVALID_ARGUMENT that begins with `where`, as in "messages[2].tool_calls[0].arguments".
absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view where);

// As Python prints it: null is None, 1e20 is 1e+20, a list is ['a', 1].
std::string PythonText(const Json& value);
// Python's truth: null, false, 0, and whatever is empty are false. `value` may be null (undefined).
bool IsTrue(const Json* value);
// The member, or null for "undefined": also when `value` is null or no object.
const Json* Member(const Json* value, std::string_view key);
// Members by key, case-insensitively, equal keys in their order (Jinja's dictsort).
std::vector<std::pair<std::string_view, const Json*>> SortedMembers(const Json& object);

// White space at both ends as Python's str.strip() sees it.
std::string_view Strip(std::string_view text);
std::string AsciiUpper(std::string_view text);

// Collects a prompt; neighbours of the same trust become one segment.
class PromptWriter {
 public:
  // The template's own text: markers in it count.
  void Syntax(std::string_view text) { Append(text, true); }
  // Anything that came with the request.
  void Data(std::string_view text) { Append(text, false); }
  // `<|"|>` text `<|"|>`
  void Quoted(std::string_view text);
  // A value of Gemma 4's tool syntax. `quoted_keys`: keys inside objects stand in quotes, too.
  void Value(const Json& value, bool quoted_keys);
  // {k:v,...} without the braces, sorted; keys of the outer object are bare.
  void Members(const Json& object, bool quoted_keys);

  std::vector<PromptSegment> Take() { return std::move(segments_); }

 private:
  void Append(std::string_view text, bool trusted);

  std::vector<PromptSegment> segments_;
};

// "declaration:NAME{...}" of an OpenAI function schema, as Gemma 4 was taught it.
absl::Status WriteDeclaration(const Json& tool, std::string_view where, PromptWriter* out);

absl::StatusOr<std::vector<PromptSegment>> RenderGemma4(bool big, const ChatRequest& request);
absl::StatusOr<std::vector<PromptSegment>> RenderGemma3(const ChatRequest& request);

}  // namespace lapidary::internal
