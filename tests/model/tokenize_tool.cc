// Reads lines of {"text": "...", "parse_special": false} and prints the ids of each as a JSON list:
// what tests/golden/check_tokenizer_real.py compares with other implementations.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenize_tool CHECKPOINT < lines.jsonl\n";
    return 2;
  }
  auto tokenizer = lapidary::Tokenizer::Load(argv[1]);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    const nlohmann::json query = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!query.is_object() || !query.contains("text") || !query["text"].is_string()) {
      std::cerr << "not a query: " << line << "\n";
      return 1;
    }
    const bool parse = query.value("parse_special", false);
    std::vector<lapidary::TokenId> ids;
    (*tokenizer)
        ->Encode(query["text"].get<std::string>(),
                 parse ? lapidary::SpecialTokens::kParse : lapidary::SpecialTokens::kAsText, &ids);
    std::cout << nlohmann::json(ids).dump() << "\n";
  }
  return 0;
}
