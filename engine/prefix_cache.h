// Which computed pages hold the KV of which prefix, so that a request that begins like an earlier
// one need not compute that beginning again. engine/README.md, "The prefix cache".
//
// A block is 16 tokens together with all tokens before them: a node of a tree, whose root is a
// cache key (whose requests may share: tenant, adapter, image). It names the pages that hold its
// KV: a global page as long as it lives, a sliding one as long as that one is kept. A hash finds a
// block; its parent and its tokens, compared exactly, decide.
//
// The cache only names pages. Whether a named page is read by sequences or by nobody is the pool's
// to know, and only those that nobody reads are ever taken away.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/page_pool.h"

namespace lapidary {

inline constexpr PageId kNoPage{-1};

// Of a block's tokens after a parent with the hash `parent`. Tests pass bad ones.
using BlockHash = uint64_t (*)(uint64_t parent, std::span<const TokenId> tokens);
uint64_t HashBlock(uint64_t parent, std::span<const TokenId> tokens);

// Where a sequence stands in the tree: its first `blocks` blocks end in this one, if it still is.
struct PrefixPosition {
  int32_t blocks = 0;
  uint64_t hash = 0;
  uint64_t id = 0;
};

// A sequence's pages as the cache sees them: entry i of a family's table may be named when it is
// not stale.
struct PageTables {
  const std::array<std::vector<PageId>, kKvFamilies>& table;
  const std::array<int32_t, kKvFamilies>& first_live;
};

class PrefixCache {
 public:
  using Pools = std::array<PagePool, kKvFamilies>;

  // The pools outlive the cache. A family that is not present has no pages.
  PrefixCache(Pools& pools, const std::array<bool, kKvFamilies>& present, int32_t window,
              BlockHash hash = HashBlock);
  ~PrefixCache();

  // Pages of a prefix that a sequence can resume after.
  struct Found {
    std::array<std::vector<PageId>, kKvFamilies> table;  // kNoPage: behind the window there
    PrefixPosition position;
  };
  // The longest prefix of at most `most_blocks` blocks after which a sequence can be resumed: all
  // its global pages are held, and the sliding pages of the window - 1 positions before its end.
  Found Find(std::string_view key, std::span<const TokenId> tokens, int32_t most_blocks);

  // Makes the first `blocks` blocks of a sequence findable, which are computed. From `position` on,
  // where that block still is; else from the beginning. Where a block is known already, its pages
  // stay, except that a page which nobody reads is replaced by the sequence's: one copy is enough,
  // and what a running sequence has named is not evicted.
  void Publish(PrefixPosition& position, std::string_view key, std::span<const TokenId> tokens,
               int32_t blocks, const PageTables& pages);

  // A reader leaves a page that may be named; it is cached or free then.
  void Release(KvFamily family, PageId page, bool passed_over);
  // The chain up to `position` was used now. Deeper blocks will be evicted before their parents.
  void Touch(const PrefixPosition& position);
  // Frees at least one cached page of the family, of which there must be one; and whatever is worth
  // nothing after that.
  void EvictOne(KvFamily family);

  int64_t evicted_pages() const { return evicted_pages_; }
  size_t blocks() const { return blocks_.size(); }  // roots are not counted

 private:
  struct Block;

  bool present(KvFamily family) const { return present_[static_cast<int>(family)]; }
  bool Names(const Block& block, KvFamily family) const;
  bool InUse(const Block& block) const;
  bool Resumable(const Block& block) const;
  bool Dead(const Block& block) const;

  Block* Child(const Block& parent, std::span<const TokenId> tokens, uint64_t hash) const;
  Block* At(const PrefixPosition& position) const;
  Block& Insert(Block& parent, std::span<const TokenId> tokens, uint64_t hash);
  void Offer(Block& block, int32_t index, const PageTables& pages);
  void NamePage(Block& block, int family, PageId page);
  void UnnamePage(Block& block, int family);

  void Remove(Block& leaf);
  void RemoveSubtree(Block& top);
  void Prune(Block* block);
  void PruneBelow(Block& block);

  Pools& pools_;
  const std::array<bool, kKvFamilies> present_;
  const int32_t window_;
  const BlockHash hash_;
  std::unordered_map<std::string, std::unique_ptr<Block>> roots_;     // by key
  std::unordered_multimap<uint64_t, std::unique_ptr<Block>> blocks_;  // by hash
  std::array<std::vector<Block*>, kKvFamilies> named_by_;             // by page
  uint64_t next_id_ = 1;
  int64_t evicted_pages_ = 0;
};

}  // namespace lapidary
