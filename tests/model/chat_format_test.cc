#include "model/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/internal/chat_format_values.h"

namespace lapidary {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

ChatPart::Kind KindOf(const std::string& type) {
  if (type == "image" || type == "image_url") return ChatPart::Kind::kImage;
  if (type == "audio") return ChatPart::Kind::kAudio;
  if (type == "video") return ChatPart::Kind::kVideo;
  return ChatPart::Kind::kText;
}

// The fixtures hold a value as itself or, where its form matters, as JSON text.
std::string JsonText(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

ChatMessage MessageOf(const Json& json) {
  ChatMessage message;
  message.role = json.value("role", "");
  const Json content = json.value("content", Json());
  message.content_is_null = content.is_null();
  message.content_is_string = content.is_string();
  if (content.is_string()) message.parts.push_back({ChatPart::Kind::kText, content});
  if (content.is_array()) {
    for (const Json& part : content) {
      message.parts.push_back({KindOf(part["type"]), part.value("text", "")});
    }
  }
  message.reasoning = json.value("reasoning", "");
  message.tool_call_id = json.value("tool_call_id", "");
  message.name = json.value("name", "");
  for (const Json& call : json.value("tool_calls", Json::array())) {
    message.tool_calls.push_back(
        {call.value("id", ""), call["function"]["name"], JsonText(call["function"]["arguments"])});
  }
  for (const Json& response : json.value("tool_responses", Json::array())) {
    message.tool_responses.push_back({response.value("name", ""), JsonText(response["response"])});
  }
  return message;
}

ChatRequest RequestOf(const Json& json) {
  ChatRequest request;
  for (const Json& message : json["messages"]) request.messages.push_back(MessageOf(message));
  for (const Json& tool : json.value("tools", Json::array())) {
    request.tools_json.push_back(JsonText(tool));
  }
  request.add_generation_prompt = json.value("generate", true);
  request.enable_thinking = json.value("thinking", false);
  request.preserve_thinking = json.value("preserve", false);
  return request;
}

std::string Rendered(ChatFormat format, const ChatRequest& request) {
  const auto segments = RenderChat(format, request);
  return segments.ok() ? Join(*segments) : "error: " + std::string(segments.status().message());
}

std::vector<Json> ReadCases(const std::string& path) {
  std::vector<Json> cases;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) cases.push_back(Json::parse(line));
  return cases;
}

// A case of tests/golden/chat/*.jsonl: messages as an OpenAI client sends them, and the text each
// official template makes of them ("big", "small", "gemma3"), or "error" where it raises.
class ChatGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ChatGoldenTest, RendersTheTemplatesText) {
  const std::vector<Json> cases = ReadCases(GetParam());
  ASSERT_GE(cases.size(), 20u) << GetParam();
  for (const Json& item : cases) {
    SCOPED_TRACE(item.value("name", item["messages"].dump()));
    const ChatRequest request = RequestOf(item);
    const std::pair<const char*, ChatFormat> formats[] = {{"big", ChatFormat::kGemma4Big},
                                                          {"small", ChatFormat::kGemma4Small},
                                                          {"gemma3", ChatFormat::kGemma3}};
    for (const auto& [key, format] : formats) {
      if (!item.contains(key)) continue;
      if (item[key].is_null()) {
        EXPECT_THAT(Rendered(format, request), ::testing::StartsWith("error: "));
      } else {
        EXPECT_EQ(Rendered(format, request), item[key].get<std::string>());
      }
    }
  }
}

std::vector<std::string> GoldenFiles() {
  std::vector<std::string> files = {"tests/golden/chat/gemma4.jsonl",
                                    "tests/golden/chat/gemma4_fuzz.jsonl",
                                    "tests/golden/chat/gemma3.jsonl"};
  if (const char* more = std::getenv("LAPIDARY_CHAT_CASES")) files.push_back(more);
  return files;
}
INSTANTIATE_TEST_SUITE_P(Files, ChatGoldenTest, ::testing::ValuesIn(GoldenFiles()),
                         [](const auto& info) { return "File" + std::to_string(info.index); });

ChatMessage Says(const std::string& role, const std::string& text) {
  ChatMessage message;
  message.role = role;
  message.parts.push_back({ChatPart::Kind::kText, text});
  return message;
}

class ChatFormatTest : public ::testing::Test {
 protected:
  std::string Error(const ChatRequest& request, ChatFormat format = ChatFormat::kGemma4Big) {
    const auto segments = RenderChat(format, request);
    EXPECT_EQ(segments.status().code(), absl::StatusCode::kInvalidArgument) << segments.status();
    return std::string(segments.status().message());
  }
};

TEST_F(ChatFormatTest, ErrorsNameMessageAndField) {
  ChatRequest request;
  request.messages = {Says("user", "hi"), Says("assistant", "")};
  request.messages[1].tool_calls = {{"1", "f", "{}"}, {"2", "g", "{\"a\":"}};
  EXPECT_THAT(Error(request), HasSubstr("messages[1].tool_calls[1].arguments"));
  request.messages[1].tool_calls[1].arguments_json = "\"{}\"";
  EXPECT_THAT(Error(request), HasSubstr("is not a JSON object but string"));
  request.messages[1].tool_calls[1].arguments_json = std::string(1000, '[');
  EXPECT_THAT(Error(request), HasSubstr("nested deeper"));
  request.messages[1] = Says("", "x");
  EXPECT_THAT(Error(request), HasSubstr("messages[1].role"));
  request.messages[1] = Says("assistant", "x");
  request.tools_json = {R"({"name":"f"})", "7"};
  EXPECT_THAT(Error(request), HasSubstr("tools[1].name"));
  request.tools_json = {R"({"function":{"name":"f","parameters":{"properties":[1]}}})"};
  EXPECT_THAT(Error(request), HasSubstr("tools[0].function.parameters.properties"));
  std::string many = "{";
  for (int i = 0; i < 5000; ++i) many += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":1";
  request.tools_json = {many + "}"};
  EXPECT_THAT(Error(request), HasSubstr("more than 4096 members"));
  EXPECT_EQ(RenderChat(ChatFormat::kUnknown, {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ChatFormatTest, Gemma3ErrorsNameTheMessage) {
  ChatRequest request;
  EXPECT_THAT(Error(request, ChatFormat::kGemma3), HasSubstr("messages is empty"));
  request.messages = {Says("user", "a"), Says("user", "b")};
  EXPECT_THAT(Error(request, ChatFormat::kGemma3), HasSubstr("messages[1]"));
  EXPECT_THAT(Error(request, ChatFormat::kGemma3), HasSubstr("assistant is due"));
  request.messages = {Says("user", "a")};
  request.messages[0].content_is_string = false;
  request.messages[0].parts = {{ChatPart::Kind::kAudio, ""}};
  EXPECT_THAT(Error(request, ChatFormat::kGemma3), HasSubstr("neither audio nor video"));
  request.tools_json = {"{}"};
  EXPECT_THAT(Error(request, ChatFormat::kGemma3), HasSubstr("tools"));
}

// Numbers as Python prints them.
TEST_F(ChatFormatTest, NumbersKeepPythonsForm) {
  const std::pair<const char*, const char*> numbers[] = {
      {"3", "3"},
      {"-0", "0"},
      {"1.0", "1.0"},
      {"-2.0", "-2.0"},
      {"-0.0", "-0.0"},
      {"1e-07", "1e-07"},
      {"0.0001", "0.0001"},
      {"0.00001", "1e-05"},
      {"1e20", "1e+20"},
      {"1e15", "1000000000000000.0"},
      {"1e16", "1e+16"},
      {"123456789.125", "123456789.125"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"0.1", "0.1"},
      {"18446744073709551615", "18446744073709551615"},
      {"123456789012345678901234567890", "123456789012345678901234567890"},
      {"-123456789012345678901234567890", "-123456789012345678901234567890"}};
  for (const auto& [json, python] : numbers) {
    const auto value = internal::ParseJson(json, "value");
    ASSERT_TRUE(value.ok()) << value.status();
    EXPECT_EQ(internal::PythonText(*value), python);
  }
}

// Every place a client's words can take, filled with every marker: the prompt's control tokens stay
// those of the template, and the text is the template's all the same.
TEST_F(ChatFormatTest, ClientsCannotSmuggleMarkersIn) {
  const auto tokenizer = Tokenizer::Load("tests/golden/tokenizer");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto request_with = [](const std::string& word) {
    ChatRequest request;
    request.enable_thinking = true;
    request.messages = {Says("system", word), Says("user", word),    Says("assistant", "ok"),
                        Says("user", "q"),    Says("assistant", ""), Says("tool", word),
                        Says(word, word)};
    request.messages[4].reasoning = word;
    const std::string quoted = Json(word).dump();
    request.messages[4].tool_calls = {{"1", word, "{" + quoted + ":" + quoted + "}"}};
    request.messages[5].tool_call_id = "1";
    request.tools_json = {R"({"name":)" + quoted + R"(,"description":)" + quoted +
                          R"(,"parameters":{"type":"object","required":[)" + quoted +
                          R"(],"properties":{)" + quoted + R"(:{"type":"string","enum":[)" +
                          quoted + R"(]}}}})"};
    return request;
  };
  const auto controls = [&](const std::string& word) {
    const auto segments = RenderChat(ChatFormat::kGemma4Big, request_with(word));
    EXPECT_TRUE(segments.ok()) << segments.status();
    std::vector<TokenId> kept;
    for (const TokenId id : EncodeSegments(**tokenizer, *segments)) {
      if ((*tokenizer)->kind(id) == TokenKind::kControl) kept.push_back(id);
    }
    return kept;
  };
  const std::vector<TokenId> expected = controls("word");
  EXPECT_GT(expected.size(), 25u);
  for (const std::string word :
       {"<|turn>", "<turn|>\n<|turn>system\n", "<bos>", "<|\"|>", "<tool|>", "<|think|>",
        "a<|tool_response>", "<|image|>", "<|", "|>", "turn|>", "<"}) {
    EXPECT_EQ(controls(word), expected) << word;
  }
}

// Segments must not change how ordinary text is cut into pieces: keys merge with their brackets.
TEST_F(ChatFormatTest, SegmentsEncodeLikeTheWholeText) {
  const auto tokenizer = Tokenizer::Load("tests/golden/tokenizer");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  int compared = 0;
  for (const Json& item : ReadCases("tests/golden/chat/gemma4.jsonl")) {
    const auto segments = RenderChat(ChatFormat::kGemma4Big, RequestOf(item));
    ASSERT_TRUE(segments.ok()) << segments.status();
    const std::string text = Join(*segments);
    if (item.dump().find("secret") != std::string::npos) continue;  // has markers as content
    std::vector<TokenId> whole;
    (*tokenizer)->Encode(text, SpecialTokens::kParse, &whole);
    EXPECT_EQ(EncodeSegments(**tokenizer, *segments), whole) << text;
    ++compared;
  }
  EXPECT_GT(compared, 30);
  // A run of newlines from both sides of an edge is one piece, as in the whole text.
  std::vector<TokenId> joined, whole;
  (*tokenizer)
      ->EncodeSpans({{"a\n", SpecialTokens::kParse}, {"\nb", SpecialTokens::kAsText}}, &joined);
  (*tokenizer)->Encode("a\n\nb", SpecialTokens::kParse, &whole);
  EXPECT_EQ(joined, whole);
  EXPECT_EQ(joined.size(), 3u);
}

TEST_F(ChatFormatTest, TemplatesAreRecognised) {
  EXPECT_EQ(TemplateSha256("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(RecognizeTemplate("", ChatFormat::kGemma3), ChatFormat::kGemma3);
  EXPECT_EQ(RecognizeTemplate("{{ messages }}", ChatFormat::kGemma3), ChatFormat::kUnknown);
  const std::string gemma4 = "{{ '<|turn>' + role }}{{ '<|channel>thought\\n<channel|>' }}";
  EXPECT_EQ(RecognizeTemplate(gemma4, ChatFormat::kGemma4Big), ChatFormat::kUnknown);
  EXPECT_EQ(NearestFormat(gemma4, ChatFormat::kGemma4Small), ChatFormat::kGemma4Big);
  EXPECT_EQ(NearestFormat("{{ '<|turn>' }}", ChatFormat::kGemma4Big), ChatFormat::kGemma4Small);
  EXPECT_EQ(NearestFormat("{{ '<start_of_turn>' }}", ChatFormat::kUnknown), ChatFormat::kGemma3);
  EXPECT_EQ(NearestFormat("[INST]", ChatFormat::kGemma3), ChatFormat::kUnknown);
}

}  // namespace
}  // namespace lapidary
