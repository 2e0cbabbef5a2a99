// Encode speed on distinct English, by processor time of one core; load time; and inputs that are
// made to be slow.
//
//   tokenizer_bench CHECKPOINT [TEXT_FILE...]
//
// With no files the text is invented: words by a Zipf law over 200,000 of them (built of syllables,
// so that about as many are unknown to the vocabulary as in real prose), no sentence twice. With
// files, they are the text. Not a Google Benchmark: a second pass over the same text would measure
// warm caches instead of a tokenizer.
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "model/tokenizer.h"

namespace lapidary {
namespace {

constexpr size_t kChunkBytes = 16384;  // one prompt

// Processor time: nothing here waits, and the machine may have other work.
double Seconds(std::clock_t since) {
  return static_cast<double>(std::clock() - since) / CLOCKS_PER_SEC;
}

// Real words of the vocabulary for the common ranks, compounds of them and syllables for the rest.
std::string InventEnglish(const Tokenizer& tokenizer, size_t bytes) {
  std::mt19937_64 random(1);
  std::vector<std::string> known;
  for (TokenId id = 0; id < tokenizer.vocab_size() && known.size() < 60000; ++id) {
    const std::string text = tokenizer.PieceText(id);
    if (tokenizer.kind(id) != TokenKind::kNormal || text.size() < 3 || text[0] != ' ') continue;
    bool letters = true;
    for (size_t i = 1; i < text.size(); ++i) letters = letters && text[i] >= 'a' && text[i] <= 'z';
    if (letters) known.push_back(text.substr(1));
  }
  constexpr size_t kWords = 200000;
  std::vector<std::string> words = known;
  static constexpr const char* kSyllables[] = {"ra",  "ten", "mo",  "lis", "ker",  "ing", "dar",
                                               "vel", "un",  "sta", "pre", "tion", "ly",  "ob"};
  while (words.size() < kWords) {
    std::string word;
    for (int parts = 2 + random() % 3; parts > 0; --parts) word += kSyllables[random() % 14];
    words.push_back(word);
  }
  std::vector<double> weights(kWords);
  for (size_t rank = 0; rank < kWords; ++rank) weights[rank] = 1.0 / (rank + 2.7);
  std::discrete_distribution<size_t> zipf(weights.begin(), weights.end());
  std::string text;
  while (text.size() < bytes) {
    for (int words_left = 4 + random() % 18; words_left > 0; --words_left) {
      text += words[zipf(random)];
      text += words_left > 1 ? (random() % 12 == 0 ? ", " : " ") : ". ";
    }
    if (random() % 6 == 0) text += "\n\n";
  }
  return text;
}

void Measure(const char* name, const Tokenizer& tokenizer, const std::string& text) {
  const auto start = std::clock();
  size_t tokens = 0;
  std::vector<TokenId> ids;
  for (size_t at = 0; at < text.size(); at += kChunkBytes) {
    ids.clear();
    tokenizer.Encode(std::string_view(text).substr(at, kChunkBytes), SpecialTokens::kAsText, &ids);
    tokens += ids.size();
  }
  const double seconds = Seconds(start);
  std::printf("%-28s %7.2f MB  %7.3f s  %7.2f MB/s  %9zu tokens  %4.2f bytes/token\n", name,
              text.size() / 1e6, seconds, text.size() / 1e6 / seconds, tokens,
              static_cast<double>(text.size()) / tokens);
}

void MeasureWhole(const char* name, const Tokenizer& tokenizer, const std::string& text) {
  const auto start = std::clock();
  std::vector<TokenId> ids;
  tokenizer.Encode(text, SpecialTokens::kAsText, &ids);
  const double seconds = Seconds(start);
  std::printf("%-28s %7.2f MB  %7.3f s  %7.2f MB/s  %9zu tokens\n", name, text.size() / 1e6,
              seconds, text.size() / 1e6 / seconds, ids.size());
}

std::string Repeat(const std::string& unit) {
  std::string text;
  while (text.size() < (1 << 20)) text += unit;
  return text;
}

int Run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: tokenizer_bench CHECKPOINT [TEXT_FILE...]\n");
    return 2;
  }
  const auto start = std::clock();
  const auto tokenizer = Tokenizer::Load(argv[1]);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  std::printf("loaded %ld entries in %.3f s\n", static_cast<long>((*tokenizer)->vocab_size()),
              Seconds(start));
  if (argc > 2) {
    std::string text;
    for (int i = 2; i < argc; ++i) {
      std::ifstream file(argv[i], std::ios::binary);
      text.append(std::istreambuf_iterator<char>(file), {});
    }
    if (!text.empty()) Measure("files", **tokenizer, text);
  } else {
    Measure("invented English", **tokenizer, InventEnglish(**tokenizer, 20 << 20));
  }
  std::mt19937 random(2);
  std::string bytes, letters;
  for (int i = 0; i < (1 << 20); ++i) bytes.push_back(static_cast<char>(random()));
  for (int i = 0; i < (1 << 20); ++i) letters.push_back(static_cast<char>('a' + random() % 26));
  MeasureWhole("one letter", **tokenizer, Repeat("a"));
  MeasureWhole("letters without a space", **tokenizer, letters);
  MeasureWhole("words without a space", **tokenizer, Repeat("theinformation"));
  MeasureWhole("spaces", **tokenizer, Repeat(" "));
  MeasureWhole("emoji", **tokenizer, Repeat("\xF0\x9F\x98\x80\xF0\x9F\x8E\x89"));
  MeasureWhole("Chinese", **tokenizer, Repeat("\xE4\xB8\x96\xE7\x95\x8C\xE5\xA4\xA9\xE6\xB0\x94"));
  MeasureWhole("random bytes", **tokenizer, bytes);
  MeasureWhole("openings of markers", **tokenizer, Repeat("<unused"));
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) { return lapidary::Run(argc, argv); }
