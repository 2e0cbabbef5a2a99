// The vocabularies of GGUF files. Small files are written here; the real one is read where
// LAPIDARY_GEMMA3_GGUF points at it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/tokenizer.h"

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6;

// A GGUF file of metadata only.
class GgufWriter {
 public:
  void String(const std::string& key, const std::string& value) {
    Begin(key, 8);
    Text(value);
  }
  void Uint32(const std::string& key, uint32_t value) {
    Begin(key, 4);
    Raw(value);
  }
  void Strings(const std::string& key, const std::vector<std::string>& values) {
    BeginArray(key, 8, values.size());
    for (const std::string& value : values) Text(value);
  }
  void Floats(const std::string& key, const std::vector<float>& values) {
    BeginArray(key, 6, values.size());
    for (const float value : values) Raw(value);
  }
  void Ints(const std::string& key, const std::vector<int32_t>& values) {
    BeginArray(key, 5, values.size());
    for (const int32_t value : values) Raw(value);
  }
  std::string Save(const std::string& name) const {
    const std::string path = ::testing::TempDir() + name;
    GgufWriter head;
    head.bytes_ = "GGUF";
    head.Raw(uint32_t{3});
    head.Raw(uint64_t{0});  // tensors
    head.Raw(count_);
    std::ofstream(path, std::ios::binary) << head.bytes_ << bytes_;
    return path;
  }

 private:
  template <class T>
  void Raw(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void Text(const std::string& text) {
    Raw(static_cast<uint64_t>(text.size()));
    bytes_ += text;
  }
  void Begin(const std::string& key, uint32_t type) {
    Text(key);
    Raw(type);
    ++count_;
  }
  void BeginArray(const std::string& key, uint32_t type, size_t size) {
    Begin(key, 9);
    Raw(type);
    Raw(static_cast<uint64_t>(size));
  }

  std::string bytes_;
  uint64_t count_ = 0;
};

struct Entry {
  std::string name;
  int type;
  float score;
};

GgufWriter Scored(const std::vector<Entry>& entries) {
  std::vector<std::string> names;
  std::vector<int32_t> types;
  std::vector<float> scores;
  for (const Entry& entry : entries) {
    names.push_back(entry.name);
    types.push_back(entry.type);
    scores.push_back(entry.score);
  }
  GgufWriter file;
  file.String("tokenizer.ggml.model", "llama");
  file.Strings("tokenizer.ggml.tokens", names);
  file.Ints("tokenizer.ggml.token_type", types);
  file.Floats("tokenizer.ggml.scores", scores);
  file.Uint32("tokenizer.ggml.bos_token_id", 1);
  file.Uint32("tokenizer.ggml.unknown_token_id", 0);
  return file;
}

std::vector<TokenId> Encode(const Tokenizer& tokenizer, const std::string& text,
                            SpecialTokens specials = SpecialTokens::kAsText) {
  std::vector<TokenId> ids;
  tokenizer.Encode(text, specials, &ids);
  return ids;
}

constexpr char kSpace[] = "\xE2\x96\x81";

// Ids:                    0 unk, 1 bos, 2 a, 3 b, 4 c, 5 ab, 6 bc, 7 ▁, 8 ▁a, 9 newline, 10 image
const std::vector<Entry> kSmall = {{"<unk>", kUnknown, 0},
                                   {"<bos>", kControl, 0},
                                   {"a", kNormal, -5},
                                   {"b", kNormal, -6},
                                   {"c", kNormal, -7},
                                   {"ab", kNormal, -2},
                                   {"bc", kNormal, -1},
                                   {kSpace, kNormal, -8},
                                   {std::string(kSpace) + "a", kNormal, -3},
                                   {"\n\n", kUserDefined, -1000},
                                   {"<start_of_image>", kUserDefined, -1000}};

TEST(GgufTokenizerTest, TheHighestScoreMergesFirst) {
  auto tokenizer = Tokenizer::Load(Scored(kSmall).Save("scores.gguf"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(Encode(**tokenizer, "abc"), ElementsAre(2, 6));  // bc before ab
  EXPECT_THAT(Encode(**tokenizer, "abab"), ElementsAre(5, 5));
  EXPECT_THAT(Encode(**tokenizer, "b abc"), ElementsAre(3, 8, 6));
  EXPECT_THAT(Encode(**tokenizer, "a\n\nb"), ElementsAre(2, 9, 3));
  EXPECT_THAT(Encode(**tokenizer, "x"), ElementsAre(0));  // no byte entries in this one
  EXPECT_EQ((*tokenizer)->bos(), 1);
}

TEST(GgufTokenizerTest, EqualScoresMergeFromTheLeft) {
  std::vector<Entry> entries = kSmall;
  entries[5].score = entries[6].score;
  auto tokenizer = Tokenizer::Load(Scored(entries).Save("ties.gguf"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(Encode(**tokenizer, "abc"), ElementsAre(5, 4));
  // The same in a stretch long enough for the heap.
  std::string text;
  std::vector<TokenId> expected;
  for (int i = 0; i < 100; ++i) {
    text += "abc";
    expected.insert(expected.end(), {5, 4});
  }
  EXPECT_EQ(Encode(**tokenizer, text), expected);
}

// Stored as user-defined, but it opens an image: only a template may write it.
TEST(GgufTokenizerTest, MarkersStoredAsUserDefinedAreControl) {
  auto tokenizer = Tokenizer::Load(Scored(kSmall).Save("markers.gguf"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->kind(10), TokenKind::kControl);
  EXPECT_EQ((*tokenizer)->kind(9), TokenKind::kUserDefined);
  EXPECT_THAT(Encode(**tokenizer, "<start_of_image>"), ::testing::Not(::testing::Contains(10)));
  EXPECT_THAT(Encode(**tokenizer, "<start_of_image>", SpecialTokens::kParse), ElementsAre(10));
}

// Gemma 4's form, made of the trained vocabulary: the same ids as from its tokenizer.json.
TEST(GgufTokenizerTest, MergesGiveTheIdsOfTheReferenceImplementation) {
  const nlohmann::json json =
      nlohmann::json::parse(std::ifstream("tests/golden/tokenizer/tokenizer.json"));
  std::vector<std::string> names(json["model"]["vocab"].size());
  std::vector<int32_t> types(names.size(), kNormal);
  for (const auto& item : json["model"]["vocab"].items()) names[item.value()] = item.key();
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i].size() == 6 && names[i].substr(0, 3) == "<0x") types[i] = kByte;
  }
  for (const auto& token : json["added_tokens"]) {
    const std::string name = token["content"];
    // As the converter does it: some of the markers are not called control.
    const bool tool = name.find("tool_call") != std::string::npos || name == "<|\"|>";
    types[token["id"]] = token["special"] && !tool ? kControl : kUserDefined;
  }
  std::vector<std::string> merges;
  for (const auto& pair : json["model"]["merges"]) {
    merges.push_back(pair[0].get<std::string>() + " " + pair[1].get<std::string>());
  }
  GgufWriter file;
  file.String("tokenizer.ggml.model", "gemma4");
  file.Strings("tokenizer.ggml.tokens", names);
  file.Ints("tokenizer.ggml.token_type", types);
  file.Strings("tokenizer.ggml.merges", merges);
  file.String("tokenizer.chat_template", "{{ messages }}");
  auto tokenizer = Tokenizer::Load(file.Save("merges.gguf"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->chat_template(), "{{ messages }}");
  EXPECT_EQ((*tokenizer)->bos(), (*tokenizer)->Find("<bos>"));
  std::ifstream cases("tests/golden/tokenizer/cases.jsonl");
  int compared = 0;
  for (std::string line; std::getline(cases, line); ++compared) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::vector<TokenId> parse = expected["parse"];
    ASSERT_EQ(Encode(**tokenizer, expected["text"], SpecialTokens::kParse), parse) << line;
    ASSERT_EQ(Encode(**tokenizer, expected["text"]), expected.value("as_text", parse)) << line;
  }
  EXPECT_GT(compared, 800);
}

TEST(GgufTokenizerTest, BadFilesAreNamed) {
  const auto message = [](const GgufWriter& file) {
    return std::string(Tokenizer::Load(file.Save("bad.gguf")).status().message());
  };
  GgufWriter other;
  other.String("tokenizer.ggml.model", "gpt2");
  EXPECT_THAT(message(other), HasSubstr("\"gpt2\""));
  EXPECT_THAT(message(GgufWriter()), HasSubstr("tokenizer.ggml.model"));
  GgufWriter short_types;
  short_types.String("tokenizer.ggml.model", "llama");
  short_types.Strings("tokenizer.ggml.tokens", {"a", "b"});
  short_types.Ints("tokenizer.ggml.token_type", {1});
  EXPECT_THAT(message(short_types), HasSubstr("1 elements for 2 tokens"));
  GgufWriter no_merges;
  no_merges.String("tokenizer.ggml.model", "gemma4");
  no_merges.Strings("tokenizer.ggml.tokens", {"a"});
  no_merges.Ints("tokenizer.ggml.token_type", {1});
  EXPECT_THAT(message(no_merges), HasSubstr("tokenizer.ggml.merges"));
  EXPECT_THAT(message(Scored({{"a", kNormal, std::nanf("")}})), HasSubstr("not a number"));
  EXPECT_THAT(message(Scored({{std::string(5000, 'a'), kNormal, 0}})), HasSubstr("5000 bytes"));
}

TEST(GgufTokenizerTest, TruncatedFilesFailCleanly) {
  std::ifstream file(Scored(kSmall).Save("whole.gguf"), std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  const std::string path = ::testing::TempDir() + "cut.gguf";
  for (size_t length = 0; length < whole.size(); ++length) {
    std::ofstream(path, std::ios::binary) << whole.substr(0, length);
    EXPECT_FALSE(Tokenizer::Load(path).ok()) << length;
  }
}

// Ids on which llama-cpp-python and transformers agree (tests/golden/check_tokenizer_real.py).
TEST(GgufTokenizerTest, RealGemma3Vocabulary) {
  const char* path = std::getenv("LAPIDARY_GEMMA3_GGUF");
  if (path == nullptr || *path == '\0')
    GTEST_SKIP() << "LAPIDARY_GEMMA3_GGUF does not name gemma3-270m.gguf";
  auto tokenizer = Tokenizer::Load(path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 262144);
  std::ifstream cases("tests/golden/tokenizer/gemma3_real.jsonl");
  int compared = 0;
  for (std::string line; std::getline(cases, line); ++compared) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::vector<TokenId> ids = expected["ids"];
    EXPECT_EQ(Encode(**tokenizer, expected["text"],
                     expected["parse"] ? SpecialTokens::kParse : SpecialTokens::kAsText),
              ids)
        << line;
    EXPECT_EQ((*tokenizer)->Decode(ids, false), expected["text"].get<std::string>());
  }
  EXPECT_EQ(compared, 400);
}

}  // namespace
}  // namespace lapidary
