// Byte-pair merging over code points: from a stretch of text to the ids of its pieces.
//
// Two ways to say which pair merges next. By merges (tokenizer.json, Gemma 4's GGUF): the pair of
// ids with the lowest rank in a list. By scores (Gemma 3's GGUF): the pair whose joined text is an
// entry with the highest score. Ties go to the leftmost pair. What is left of characters without an
// entry becomes one byte token per byte.
//
// Text is cut before it is merged, wherever no entry spans the cut: then no merge can, and the
// stretches are independent, so the ids are those of the uncut text. For Gemma's vocabularies that
// is before nearly every space and around most punctuation.
#pragma once
#include <atomic>
#include <bitset>
#include <cstdint>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/base/ids.h"
#include "model/tokenizer_vocab.h"

namespace lapidary::internal {

class Bpe {
 public:
  struct Pair {
    TokenId left, right, merged;
  };
  // `vocab` must outlive this. `merges`: rank order, lowest first; entries are ids of `vocab`.
  Bpe(const Vocabulary& vocab, const std::vector<Pair>& merges, TokenId unknown);
  // `scores` [vocab.size()].
  Bpe(const Vocabulary& vocab, const std::vector<float>& scores, TokenId unknown);

  // Appends the ids of `text`, in which spaces are spaces. Near linear in its length whatever it
  // holds. Safe from several threads.
  void Encode(std::string_view text, std::vector<TokenId>* ids) const;

 private:
  static constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
  struct Merge {
    uint32_t rank = kNoRank;  // the lowest merges first
    TokenId id = kNoToken;
  };
  // A piece of the stretch that is being merged: bytes [begin, begin + length).
  struct Symbol {
    uint32_t begin, length;
    TokenId id;  // kNoToken: a character without an entry, or a byte of broken UTF-8
  };

  void FindCuts();
  void EncodeStretch(std::string_view text, std::vector<TokenId>* ids) const;
  // Both merge text into *symbols; the first is quadratic and fast for a word, the second
  // O(n log n) for anything longer.
  void MergeShort(std::string_view text, std::vector<Symbol>* symbols) const;
  void MergeLong(std::string_view text, std::vector<Symbol>* symbols) const;
  void Split(std::string_view text, std::vector<Symbol>* symbols) const;
  Merge Lookup(std::string_view text, const Symbol& left, const Symbol& right) const;
  void Emit(std::string_view text, const Symbol& symbol, std::vector<TokenId>* ids) const;

  const Vocabulary& vocab_;
  const TokenId unknown_;  // for what has neither entry nor byte tokens; may be kNoToken
  const bool by_scores_;
  std::vector<uint32_t> score_ranks_;            // [vocab.size()] when by_scores_
  absl::flat_hash_map<uint64_t, Merge> merges_;  // left id, right id; when !by_scores_
  TokenId ascii_[128];                           // entries of one ASCII character
  std::bitset<65536> joined_;  // by last byte before and first byte behind: an entry spans this

  // Whether an entry's own text encodes to just that entry, found out on first use: most words are
  // one entry, and then one lookup does. Racing threads write the same answer.
  enum Whole : uint8_t { kNotYet = 0, kYes, kNo };
  mutable std::unique_ptr<std::atomic<uint8_t>[]> whole_;  // [vocab.size()]
};

}  // namespace lapidary::internal
