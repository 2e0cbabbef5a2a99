#include "model/bpe.h"

#include <algorithm>
#include <numeric>
#include <queue>

#include "model/tokenizer_utf8.h"

namespace lapidary::internal {
namespace {

// Up to here shifting an array beats a heap; nearly every word is shorter.
constexpr size_t kShortSymbols = 40;
// Symbols count bytes in 32 bits; text without a single cut is cut here.
constexpr size_t kLongestStretch = size_t{1} << 30;

uint64_t PairKey(TokenId left, TokenId right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

size_t BigramIndex(char before, char behind) {
  return static_cast<uint8_t>(before) * size_t{256} + static_cast<uint8_t>(behind);
}

}  // namespace

Bpe::Bpe(const Vocabulary& vocab, const std::vector<Pair>& merges, TokenId unknown)
    : vocab_(vocab), unknown_(unknown), by_scores_(false) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Pair& pair = merges[rank];
    if (vocab_.FindMergeable(vocab_.text(pair.merged)) != pair.merged) continue;
    merges_.emplace(PairKey(pair.left, pair.right),
                    Merge{static_cast<uint32_t>(rank), pair.merged});
  }
  FindCuts();
}

Bpe::Bpe(const Vocabulary& vocab, const std::vector<float>& scores, TokenId unknown)
    : vocab_(vocab), unknown_(unknown), by_scores_(true), score_ranks_(vocab.size()) {
  std::vector<TokenId> order(vocab.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&scores](TokenId a, TokenId b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  // Equal scores share a rank, so that the leftmost of them wins.
  for (size_t i = 0; i < order.size(); ++i) {
    const bool tie = i > 0 && scores[order[i]] == scores[order[i - 1]];
    score_ranks_[order[i]] = tie ? score_ranks_[order[i - 1]] : static_cast<uint32_t>(i);
  }
  FindCuts();
}

void Bpe::FindCuts() {
  for (size_t before = 0; before < 256; ++before) {
    for (size_t behind = 0x80; behind < 0xC0; ++behind) joined_.set(before * 256 + behind);
  }
  for (TokenId id = 0; id < vocab_.size(); ++id) {
    const std::string_view text = vocab_.text(id);
    if (text.size() < 2 || vocab_.FindMergeable(text) != id) continue;
    for (size_t i = 1; i < text.size(); ++i) joined_.set(BigramIndex(text[i - 1], text[i]));
  }
  for (int c = 0; c < 128; ++c) {
    const char byte = static_cast<char>(c);
    ascii_[c] = vocab_.FindMergeable(std::string_view(&byte, 1));
  }
  whole_ = std::make_unique<std::atomic<uint8_t>[]>(vocab_.size());
}

void Bpe::Encode(std::string_view text, std::vector<TokenId>* ids) const {
  size_t begin = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    if (joined_[BigramIndex(text[i - 1], text[i])] && i - begin < kLongestStretch) continue;
    EncodeStretch(text.substr(begin, i - begin), ids);
    begin = i;
  }
  if (begin < text.size()) EncodeStretch(text.substr(begin), ids);
}

void Bpe::EncodeStretch(std::string_view text, std::vector<TokenId>* ids) const {
  if (text.size() == 1 && static_cast<uint8_t>(text[0]) < 128) {
    Emit(text, Symbol{0, 1, ascii_[static_cast<uint8_t>(text[0])]}, ids);
    return;
  }
  const TokenId entry =
      text.size() <= vocab_.longest_mergeable() ? vocab_.FindMergeable(text) : kNoToken;
  if (entry != kNoToken && whole_[entry].load(std::memory_order_relaxed) == kYes) {
    ids->push_back(entry);
    return;
  }
  thread_local std::vector<Symbol> symbols;  // keeps its storage from word to word
  Split(text, &symbols);
  if (symbols.size() <= kShortSymbols) {
    MergeShort(text, &symbols);
  } else {
    MergeLong(text, &symbols);
  }
  if (entry != kNoToken) {
    const bool whole = symbols.size() == 1 && symbols[0].id == entry;
    whole_[entry].store(whole ? kYes : kNo, std::memory_order_relaxed);
  }
  for (const Symbol& symbol : symbols) Emit(text, symbol, ids);
  if (symbols.capacity() > 4096) symbols = {};  // one huge stretch must not stay in memory
}

void Bpe::Split(std::string_view text, std::vector<Symbol>* symbols) const {
  symbols->clear();
  for (size_t at = 0; at < text.size();) {
    const auto begin = static_cast<uint32_t>(at);
    if (static_cast<uint8_t>(text[at]) < 128) {
      symbols->push_back({begin, 1, ascii_[static_cast<uint8_t>(text[at])]});
      ++at;
      continue;
    }
    const int length = Utf8Length(text.substr(at));
    if (length > 0) {
      symbols->push_back(
          {begin, static_cast<uint32_t>(length), vocab_.FindMergeable(text.substr(at, length))});
      at += length;
    } else {
      symbols->push_back({begin, 1, kNoToken});
      ++at;
    }
  }
}

Bpe::Merge Bpe::Lookup(std::string_view text, const Symbol& left, const Symbol& right) const {
  if (!by_scores_) {
    if (left.id == kNoToken || right.id == kNoToken) return {};
    const auto found = merges_.find(PairKey(left.id, right.id));
    return found == merges_.end() ? Merge{} : found->second;
  }
  const size_t length = size_t{left.length} + right.length;
  if (length > vocab_.longest_mergeable()) return {};
  const TokenId id = vocab_.FindMergeable(text.substr(left.begin, length));
  return id == kNoToken ? Merge{} : Merge{score_ranks_[id], id};
}

void Bpe::MergeShort(std::string_view text, std::vector<Symbol>* symbols) const {
  Merge merges[kShortSymbols];  // merges[i]: of symbols i and i + 1
  size_t count = symbols->size();
  Symbol* symbol = symbols->data();
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = Lookup(text, symbol[i], symbol[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    symbol[best].length += symbol[best + 1].length;
    symbol[best].id = merges[best].id;
    std::copy(symbol + best + 2, symbol + count, symbol + best + 1);
    std::copy(merges + best + 1, merges + count - 1, merges + best);
    --count;
    if (best > 0) merges[best - 1] = Lookup(text, symbol[best - 1], symbol[best]);
    if (best + 1 < count) merges[best] = Lookup(text, symbol[best], symbol[best + 1]);
  }
  symbols->resize(count);
}

void Bpe::MergeLong(std::string_view text, std::vector<Symbol>* symbols) const {
  struct Candidate {
    uint32_t rank;
    uint32_t left;    // index of the left symbol
    uint32_t length;  // of both together when this was found: tells a stale candidate
    TokenId id;
    bool operator<(const Candidate& other) const {  // std::priority_queue keeps the greatest on top
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  const auto count = static_cast<uint32_t>(symbols->size());
  Symbol* symbol = symbols->data();
  std::vector<uint32_t> previous(count), next(count);  // a merged-away symbol has length 0
  std::vector<Candidate> found;
  const auto consider = [&](uint32_t left, uint32_t right) {
    const Merge merge = Lookup(text, symbol[left], symbol[right]);
    if (merge.rank == kNoRank) return false;
    found.push_back({merge.rank, left, symbol[left].length + symbol[right].length, merge.id});
    return true;
  };
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kNone : i - 1;
    next[i] = i + 1 == count ? kNone : i + 1;
    if (i + 1 < count) consider(i, i + 1);
  }
  std::make_heap(found.begin(), found.end());
  while (!found.empty()) {
    std::pop_heap(found.begin(), found.end());
    const Candidate best = found.back();
    found.pop_back();
    const uint32_t left = best.left;
    const uint32_t right = next[left];
    // Symbols only grow, so the joined length still fits only if neither has changed.
    if (symbol[left].length == 0 || right == kNone ||
        symbol[left].length + symbol[right].length != best.length) {
      continue;
    }
    symbol[left].length = best.length;
    symbol[left].id = best.id;
    symbol[right].length = 0;
    next[left] = next[right];
    if (next[left] != kNone) previous[next[left]] = left;
    if (previous[left] != kNone && consider(previous[left], left)) {
      std::push_heap(found.begin(), found.end());
    }
    if (next[left] != kNone && consider(left, next[left])) {
      std::push_heap(found.begin(), found.end());
    }
  }
  std::erase_if(*symbols, [](const Symbol& gone) { return gone.length == 0; });
}

void Bpe::Emit(std::string_view text, const Symbol& symbol, std::vector<TokenId>* ids) const {
  if (symbol.id != kNoToken) {
    ids->push_back(symbol.id);
    return;
  }
  for (const char byte : text.substr(symbol.begin, symbol.length)) {
    const TokenId id = vocab_.byte_token(static_cast<uint8_t>(byte));
    if (id != kNoToken) {
      ids->push_back(id);
    } else if (unknown_ != kNoToken) {
      ids->push_back(unknown_);  // a vocabulary without byte tokens: once for the character
      return;
    }
  }
}

}  // namespace lapidary::internal
