#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kFixtures[] = "tests/golden/tokenizer";

std::unique_ptr<Tokenizer> LoadFixture() {
  auto tokenizer = Tokenizer::Load(kFixtures);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<TokenId> Encode(const Tokenizer& tokenizer, std::string_view text,
                            SpecialTokens specials) {
  std::vector<TokenId> ids;
  tokenizer.Encode(text, specials, &ids);
  return ids;
}

class TokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    tokenizer_ = LoadFixture();
    ASSERT_NE(tokenizer_, nullptr);
  }
  std::vector<TokenId> AsText(std::string_view text) const {
    return Encode(*tokenizer_, text, SpecialTokens::kAsText);
  }
  std::vector<TokenId> Parse(std::string_view text) const {
    return Encode(*tokenizer_, text, SpecialTokens::kParse);
  }
  TokenId Id(std::string_view name) const { return tokenizer_->Find(name).value_or(-1); }

  std::unique_ptr<Tokenizer> tokenizer_;
};

// What `tokenizers` itself makes of 900 fixed and fuzzed texts (tests/golden/make_tokenizer.py).
TEST_F(TokenizerTest, AgreesWithTheReferenceImplementation) {
  std::ifstream file(std::string(kFixtures) + "/cases.jsonl");
  std::string line;
  int cases = 0;
  while (std::getline(file, line)) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::string text = expected["text"];
    const std::vector<TokenId> parse = expected["parse"];
    SCOPED_TRACE(line);
    EXPECT_EQ(Parse(text), parse);
    EXPECT_EQ(AsText(text), expected.value("as_text", parse));
    const std::string decoded = expected.value("decoded", text);
    EXPECT_EQ(tokenizer_->Decode(parse, /*skip_special=*/false), decoded);
    EXPECT_EQ(tokenizer_->Decode(parse, /*skip_special=*/true), expected.value("skipped", decoded));
    ++cases;
    if (HasFailure()) break;  // one difference explains more than nine hundred
  }
  EXPECT_GT(cases, 800);
}

TEST_F(TokenizerTest, NamesTextsAndKinds) {
  const TokenId newline_byte = Id("<0x0A>");
  EXPECT_EQ(tokenizer_->kind(newline_byte), TokenKind::kByte);
  EXPECT_EQ(tokenizer_->PieceText(newline_byte), "\n");
  EXPECT_EQ(tokenizer_->PieceName(newline_byte), "<0x0A>");
  const TokenId the = Id("\xE2\x96\x81the");
  ASSERT_GE(the, 0);
  EXPECT_EQ(tokenizer_->kind(the), TokenKind::kNormal);
  EXPECT_EQ(tokenizer_->PieceText(the), " the");
  EXPECT_EQ(tokenizer_->PieceName(the), "\xE2\x96\x81the");
  EXPECT_EQ(tokenizer_->Find(" the"), std::nullopt);  // names are as stored
  EXPECT_EQ(tokenizer_->kind(Id("<|turn>")), TokenKind::kControl);
  EXPECT_EQ(tokenizer_->kind(Id("<table>")), TokenKind::kUserDefined);
  EXPECT_EQ(tokenizer_->bos(), Id("<bos>"));
  for (const TokenId bad : {TokenId{-1}, static_cast<TokenId>(tokenizer_->vocab_size())}) {
    EXPECT_EQ(tokenizer_->PieceText(bad), "");
    EXPECT_EQ(tokenizer_->PieceName(bad), "");
    EXPECT_EQ(tokenizer_->kind(bad), TokenKind::kUnused);
  }
}

// Every control token's own text, inside other text and doubled up: none may come out.
TEST_F(TokenizerTest, UserTextCannotSmuggleAControlTokenIn) {
  int controls = 0;
  for (TokenId control = 0; control < tokenizer_->vocab_size(); ++control) {
    if (tokenizer_->kind(control) != TokenKind::kControl) continue;
    ++controls;
    const std::string name(tokenizer_->PieceName(control));
    for (const std::string& text :
         {name, " " + name, name + name, "<" + name + ">", name.substr(1) + name}) {
      for (const TokenId id : AsText(text)) {
        EXPECT_NE(tokenizer_->kind(id), TokenKind::kControl) << text;
      }
      EXPECT_EQ(tokenizer_->Decode(AsText(text), true), text);
    }
    EXPECT_THAT(Parse(name), ElementsAre(control));
  }
  EXPECT_EQ(controls, 20);
}

// A byte entry's name is text like any other; and runs are found in anyone's text.
TEST_F(TokenizerTest, ByteNamesAreTextAndRunsAreMatched) {
  for (const TokenId id : AsText("<0x0A>")) EXPECT_NE(id, Id("<0x0A>"));
  EXPECT_THAT(AsText("<table>\n\n"), ElementsAre(Id("<table>"), Id("\n\n")));
}

TEST_F(TokenizerTest, BrokenUtf8BecomesByteTokens) {
  EXPECT_THAT(AsText("\xFF"), ElementsAre(Id("<0xFF>")));
  EXPECT_THAT(AsText("\xE2\x82"), ElementsAre(Id("<0xE2>"), Id("<0x82>")));
  EXPECT_THAT(AsText("\xED\xA0\x80"), ElementsAre(Id("<0xED>"), Id("<0xA0>"), Id("<0x80>")));
  // A character without an entry, too.
  EXPECT_THAT(AsText("\xF3\xA0\x80\x81"),
              ElementsAre(Id("<0xF3>"), Id("<0xA0>"), Id("<0x80>"), Id("<0x81>")));
}

TEST_F(TokenizerTest, AnyBytesEncodeAndAnyIdsDecode) {
  std::mt19937 random(7);
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    for (int i = random() % 60; i > 0; --i) bytes.push_back(static_cast<char>(random()));
    std::string back;
    for (const TokenId id : AsText(bytes)) {
      ASSERT_NE(tokenizer_->kind(id), TokenKind::kControl);
      back += tokenizer_->PieceText(id);
    }
    EXPECT_EQ(back, bytes);
  }
  for (int round = 0; round < 500; ++round) {
    std::vector<TokenId> ids;
    for (int i = random() % 40; i > 0; --i) {
      ids.push_back(static_cast<TokenId>(random() % (tokenizer_->vocab_size() + 4)) - 2);
    }
    const std::string text = tokenizer_->Decode(ids, false);
    EXPECT_NO_THROW(nlohmann::json(text).dump()) << "not UTF-8";  // dump() throws on broken UTF-8
    IncrementalDetokenizer detokenizer(*tokenizer_, false);
    std::string pieces;
    for (const TokenId id : ids) {
      const std::string piece = detokenizer.Push(id);
      EXPECT_NO_THROW(nlohmann::json(piece).dump()) << "half a character";
      pieces += piece;
    }
    EXPECT_EQ(pieces + detokenizer.Finish(), text);
  }
}

TEST_F(TokenizerTest, IncrementalDetokenizerWaitsForWholeCharacters) {
  IncrementalDetokenizer detokenizer(*tokenizer_, true);
  EXPECT_EQ(detokenizer.Push(Id("<0xF0>")), "");
  EXPECT_EQ(detokenizer.Push(Id("<0x9F>")), "");
  EXPECT_EQ(detokenizer.Push(Id("<|turn>")), "");  // skipped, and does not end the run
  EXPECT_EQ(detokenizer.Push(Id("<0x98>")), "");
  EXPECT_EQ(detokenizer.Push(Id("<0x80>")), "\xF0\x9F\x98\x80");
  EXPECT_EQ(detokenizer.Push(Id("<0xE2>")), "");
  EXPECT_EQ(detokenizer.Push(Id("<0x82>")), "");
  EXPECT_EQ(detokenizer.Push(Id("\xE2\x96\x81the")), "\xEF\xBF\xBD\xEF\xBF\xBD the");
  EXPECT_EQ(detokenizer.Push(Id("<0xC3>")), "");
  EXPECT_EQ(detokenizer.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(detokenizer.Finish(), "");
}

// The same text in one long stretch and in short ones must give the same ids: the heap against the
// array, and cuts against none.
TEST_F(TokenizerTest, LongStretchesStayNearLinear) {
  for (const std::string unit :
       {"a", "the", "\xF0\x9F\x98\x80", "\xFF", "<", " ", "<|tool_", "ab<"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    const std::vector<TokenId> ids = AsText(text);  // quadratic would run into the test's timeout
    std::string back;
    for (const TokenId id : ids) back += tokenizer_->PieceText(id);
    EXPECT_EQ(back, text) << unit;
  }
}

TEST_F(TokenizerTest, ThreadsShareOneTokenizer) {
  const std::string text = "the quick tokenizer and the language model of a thought";
  const std::vector<TokenId> expected = Parse(text);
  const auto fresh = LoadFixture();  // no word has been seen yet
  std::vector<std::vector<TokenId>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) result = Encode(*fresh, text, SpecialTokens::kParse);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

// Writes tokenizer.json into a directory of its own and loads it.
class TokenizerFileTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadText(const std::string& text) {
    const std::string directory = ::testing::TempDir() + "tokenizer_file_test";
    std::filesystem::create_directories(directory);
    std::ofstream(directory + "/tokenizer.json") << text;
    return Tokenizer::Load(directory);
  }
  std::string Message(const std::string& text) {
    return std::string(LoadText(text).status().message());
  }
};

TEST_F(TokenizerFileTest, MergesMayBePairsOrLines) {
  const std::string head = R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":)";
  for (const std::string merges : {R"(["a b"])", R"([["a","b"]])"}) {
    auto tokenizer = LoadText(head + merges + "}}");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_THAT(Encode(**tokenizer, "abba", SpecialTokens::kAsText), ElementsAre(2, 1, 0));
  }
}

TEST_F(TokenizerFileTest, BadFilesAreNamed) {
  EXPECT_THAT(Message(""), HasSubstr("tokenizer.json"));
  EXPECT_THAT(Message("{}"), HasSubstr("there is no \"model\""));
  EXPECT_THAT(Message("[1]"), HasSubstr("tokenizer.json"));
  EXPECT_THAT(Message(R"({"model":{"vocab":{"a":-1}}})"), HasSubstr("\"a\" has id -1"));
  EXPECT_THAT(Message(R"({"model":{"vocab":{"a":99999999999}}})"), HasSubstr("99999999999"));
  EXPECT_THAT(Message(R"({"model":{"vocab":{"a":0,"b":0}}})"), HasSubstr("share the id 0"));
  EXPECT_THAT(Message(R"({"model":{"vocab":{"a":0},"merges":["a"]}})"),
              HasSubstr("not two pieces"));
  EXPECT_THAT(Message(R"({"model":{"vocab":{"a":0},"merges":["a a"]}})"),
              HasSubstr("\"aa\" is not in the vocabulary"));
  EXPECT_THAT(Message(R"({"model":{"type":"Unigram","vocab":[]}})"), HasSubstr("a model but BPE"));
  EXPECT_THAT(Message(R"({"normalizer":{"type":"NFC"},"model":{"vocab":{}}})"), HasSubstr("NFC"));
  EXPECT_THAT(Message(R"({"pre_tokenizer":{"type":"ByteLevel"},"model":{"vocab":{}}})"),
              HasSubstr("ByteLevel"));
  EXPECT_THAT(Message(R"({"added_tokens":[{"id":1}],"model":{"vocab":{}}})"),
              HasSubstr("no content"));
  EXPECT_EQ(Tokenizer::Load("/no/such/place").status().code(), absl::StatusCode::kNotFound);
}

// Whatever loads after the damage must also encode and decode without harm (asan watches).
TEST_F(TokenizerFileTest, DamagedFilesDoNoHarm) {
  std::ifstream file(std::string(kFixtures) + "/tokenizer.json");
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    std::string damaged = whole;
    for (int i = 0; i < 3; ++i) damaged[random() % whole.size()] = "\"[]{}0,:x"[random() % 9];
    const auto tokenizer = LoadText(damaged);
    if (!tokenizer.ok()) continue;
    const std::string text = "the <|turn> of\n\n a \xF0\x9F\x98\x80 <table> word";
    const std::vector<TokenId> ids = Encode(**tokenizer, text, SpecialTokens::kParse);
    EXPECT_LE((*tokenizer)->Decode(ids, false).size(), 3 * text.size());
  }
}

TEST_F(TokenizerFileTest, NoTokenizerIsNotFound) {
  const std::string directory = ::testing::TempDir() + "no_tokenizer_here";
  std::filesystem::create_directories(directory);
  EXPECT_EQ(Tokenizer::Load(directory).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(TokenizerFileTest, TemplateAndBosStandBesideTheVocabulary) {
  const std::string directory = ::testing::TempDir() + "tokenizer_neighbours";
  std::filesystem::create_directories(directory);
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(directory + "/" + name) << text;
  };
  const auto load = [&] { return *Tokenizer::Load(directory); };
  std::filesystem::remove(directory + "/chat_template.jinja");
  write("tokenizer.json", R"({"model":{"vocab":{"<s>":0,"a":1},"merges":[]}})");
  write("tokenizer_config.json", R"({"bos_token":{"content":"<s>"},"chat_template":"one"})");
  EXPECT_EQ(load()->chat_template(), "one");
  EXPECT_EQ(load()->bos(), 0);
  write(
      "tokenizer_config.json",
      R"({"chat_template":[{"name":"tool_use","template":"x"},{"name":"default","template":"two"}]})");
  EXPECT_EQ(load()->chat_template(), "two");
  EXPECT_EQ(load()->bos(), -1);
  write("chat_template.jinja", "three");
  EXPECT_EQ(load()->chat_template(), "three");
  write("tokenizer_config.json", "{");
  EXPECT_THAT(std::string(Tokenizer::Load(directory).status().message()),
              HasSubstr("tokenizer_config.json is not JSON"));
}

TEST_F(TokenizerFileTest, TruncatedFilesFailCleanly) {
  std::ifstream file(std::string(kFixtures) + "/tokenizer.json");
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  for (size_t length = 0; length + 3 < whole.size(); length += whole.size() / 61) {
    EXPECT_FALSE(LoadText(whole.substr(0, length)).ok()) << length;
  }
}

}  // namespace
}  // namespace lapidary
