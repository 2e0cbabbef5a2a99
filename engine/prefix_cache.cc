#include "engine/prefix_cache.h"

#include <algorithm>

#include "common/base/check.h"

namespace lapidary {

namespace {

constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);

uint64_t Fold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

// A multiplication for each two tokens, its high half folded onto its low one. It need not resist
// anybody: a collision costs a comparison.
uint64_t HashBlock(uint64_t parent, std::span<const TokenId> tokens) {
  uint64_t hash = parent ^ 0x9e3779b97f4a7c15;
  for (size_t i = 0; i < tokens.size(); i += 2) {
    const uint64_t low = static_cast<uint32_t>(tokens[i]);
    const uint64_t high = i + 1 < tokens.size() ? static_cast<uint32_t>(tokens[i + 1]) : 0;
    hash = Fold(hash ^ (low | high << 32), 0xd6e8feb86659fd93) + i;
  }
  return hash;
}

struct PrefixCache::Block {
  uint64_t id = 0;
  uint64_t hash = 0;
  Block* parent = nullptr;  // of a root: none
  // Children are a list, so that one of thousands below a system prompt leaves in one step.
  Block* first_child = nullptr;
  Block* next = nullptr;
  Block* previous = nullptr;
  int32_t depth = 0;    // blocks from the beginning, this one included; a root's is 0
  bool shared = false;  // a second sequence has come here
  std::array<PageId, kKvFamilies> pages = {kNoPage, kNoPage};
  std::array<TokenId, kPageTokens> tokens = {};
  std::string key;  // of a root
};

PrefixCache::PrefixCache(Pools& pools, const std::array<bool, kKvFamilies>& present, int32_t window,
                         BlockHash hash)
    : pools_(pools), present_(present), window_(window), hash_(hash) {
  for (int f = 0; f < kKvFamilies; ++f) {
    named_by_[f].resize(static_cast<size_t>(pools[f].total()), nullptr);
  }
}

PrefixCache::~PrefixCache() = default;

bool PrefixCache::Names(const Block& block, KvFamily family) const {
  return block.pages[static_cast<int>(family)] != kNoPage;
}

bool PrefixCache::InUse(const Block& block) const {
  for (int f = 0; f < kKvFamilies; ++f) {
    if (block.pages[f] != kNoPage && pools_[f].readers(block.pages[f]) > 0) return true;
  }
  return false;
}

// Whether a sequence can be resumed behind this block. Its chain holds all global pages, always.
bool PrefixCache::Resumable(const Block& block) const {
  if (!present(KvFamily::kSliding)) return true;
  const int32_t first = FirstPageRead(block.depth * kPageTokens, window_);
  for (const Block* b = &block; b->depth > first; b = b->parent) {
    if (!Names(*b, KvFamily::kSliding)) return false;
  }
  return true;
}

// Worth nothing: no sequence reads it, none can be resumed behind it, and it leads nowhere.
bool PrefixCache::Dead(const Block& block) const {
  if (block.first_child != nullptr || InUse(block)) return false;
  const bool empty = !Names(block, KvFamily::kSliding) && !Names(block, KvFamily::kGlobal);
  return empty || !Resumable(block);
}

PrefixCache::Found PrefixCache::Find(std::string_view key, std::span<const TokenId> tokens,
                                     int32_t most_blocks) {
  Found found;
  const auto root = roots_.find(std::string(key));
  if (root == roots_.end()) return found;
  std::vector<Block*> path;
  size_t resumable = 0;
  int32_t window_run = 0;  // neighbouring blocks up to this one that hold their sliding page
  Block* block = root->second.get();
  for (int32_t i = 0; i < most_blocks; ++i) {
    const std::span<const TokenId> own =
        tokens.subspan(static_cast<size_t>(i) * kPageTokens, kPageTokens);
    block = Child(*block, own, hash_(block->hash, own));
    if (block == nullptr) break;
    block->shared = true;
    path.push_back(block);
    window_run = Names(*block, KvFamily::kSliding) ? window_run + 1 : 0;
    const int32_t first_read = FirstPageRead((i + 1) * kPageTokens, window_);
    if (!present(KvFamily::kSliding) || window_run >= i + 1 - first_read) resumable = path.size();
  }
  if (resumable == 0) return found;
  path.resize(resumable);
  const int32_t first_read =
      FirstPageRead(static_cast<int32_t>(path.size()) * kPageTokens, window_);
  for (const Block* b : path) {
    if (present(KvFamily::kGlobal)) found.table[kGlobal].push_back(b->pages[kGlobal]);
    if (!present(KvFamily::kSliding)) continue;
    found.table[kSliding].push_back(b->depth > first_read ? b->pages[kSliding] : kNoPage);
  }
  const Block& last = *path.back();
  found.position = PrefixPosition{last.depth, last.hash, last.id};
  return found;
}

PrefixCache::Block* PrefixCache::Child(const Block& parent, std::span<const TokenId> tokens,
                                       uint64_t hash) const {
  const auto [begin, end] = blocks_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    Block* const block = it->second.get();
    if (block->parent != &parent) continue;
    if (std::equal(tokens.begin(), tokens.end(), block->tokens.begin())) return block;
  }
  return nullptr;
}

PrefixCache::Block* PrefixCache::At(const PrefixPosition& position) const {
  const auto [begin, end] = blocks_.equal_range(position.hash);
  for (auto it = begin; it != end; ++it) {
    if (it->second->id == position.id) return it->second.get();
  }
  return nullptr;
}

void PrefixCache::Publish(PrefixPosition& position, std::string_view key,
                          std::span<const TokenId> tokens, int32_t blocks,
                          const PageTables& pages) {
  if (blocks <= position.blocks) return;
  Block* block = At(position);
  int32_t i = position.blocks;
  if (block == nullptr) {
    i = 0;
    std::unique_ptr<Block>& root = roots_[std::string(key)];
    if (root == nullptr) {
      root = std::make_unique<Block>();
      root->key = key;
      root->hash = std::hash<std::string_view>()(key);
    }
    block = root.get();
  }
  for (; i < blocks; ++i) {
    const std::span<const TokenId> own =
        tokens.subspan(static_cast<size_t>(i) * kPageTokens, kPageTokens);
    const uint64_t hash = hash_(block->hash, own);
    Block* child = Child(*block, own, hash);
    if (child == nullptr) {
      child = &Insert(*block, own, hash);
    } else {
      child->shared = true;
    }
    Offer(*child, i, pages);
    block = child;
  }
  position = PrefixPosition{blocks, block->hash, block->id};
}

PrefixCache::Block& PrefixCache::Insert(Block& parent, std::span<const TokenId> tokens,
                                        uint64_t hash) {
  auto block = std::make_unique<Block>();
  block->id = next_id_++;
  block->hash = hash;
  block->parent = &parent;
  block->depth = parent.depth + 1;
  std::copy(tokens.begin(), tokens.end(), block->tokens.begin());
  block->next = parent.first_child;
  if (block->next != nullptr) block->next->previous = block.get();
  parent.first_child = block.get();
  return *blocks_.emplace(hash, std::move(block))->second;
}

void PrefixCache::Offer(Block& block, int32_t index, const PageTables& pages) {
  for (int f = 0; f < kKvFamilies; ++f) {
    if (!present_[f] || index < pages.first_live[f]) continue;
    const PageId mine = pages.table[f][static_cast<size_t>(index)];
    const PageId named = block.pages[f];
    if (named == mine || (named != kNoPage && pools_[f].readers(named) > 0)) continue;
    if (named != kNoPage) UnnamePage(block, f);
    NamePage(block, f, mine);
  }
}

void PrefixCache::NamePage(Block& block, int family, PageId page) {
  pools_[family].Name(page);
  named_by_[family][page.value] = &block;
  block.pages[family] = page;
}

void PrefixCache::UnnamePage(Block& block, int family) {
  const PageId page = block.pages[family];
  named_by_[family][page.value] = nullptr;
  block.pages[family] = kNoPage;
  pools_[family].Unname(page);
}

void PrefixCache::Release(KvFamily family, PageId page, bool passed_over) {
  const int f = static_cast<int>(family);
  Block* const block = named_by_[f][page.value];
  // A sequence that goes on leaves its whole length behind. Only where another one has been as
  // well, is that likely a place to resume at; one long prompt must not push out all other windows.
  const bool keep = block != nullptr && (!passed_over || block->shared);
  pools_[f].Release(page, keep ? Evict::kLater : Evict::kSooner);
  if (block != nullptr) Prune(block);
}

void PrefixCache::Touch(const PrefixPosition& position) {
  Block* const last = At(position);
  if (last == nullptr) return;
  const int32_t first_read = FirstPageRead(last->depth * kPageTokens, window_);
  for (Block* b = last; b->parent != nullptr; b = b->parent) {
    if (Names(*b, KvFamily::kGlobal)) pools_[kGlobal].Touch(b->pages[kGlobal]);
    if (b->depth <= first_read || !Names(*b, KvFamily::kSliding)) continue;
    pools_[kSliding].Touch(b->pages[kSliding]);
  }
}

void PrefixCache::EvictOne(KvFamily family) {
  const int f = static_cast<int>(family);
  const int32_t free_before = pools_[kSliding].free() + pools_[kGlobal].free();
  Block& block = *named_by_[f][pools_[f].NextToEvict().value];
  if (family == KvFamily::kGlobal) {
    // Mostly a leaf. Not where a running sequence computed this block too, and went on from there:
    // its pages are its own then, and findable again when it publishes next.
    Block* const parent = block.parent;
    RemoveSubtree(block);
    Prune(parent);
  } else {
    UnnamePage(block, kSliding);
    PruneBelow(block);
  }
  evicted_pages_ += pools_[kSliding].free() + pools_[kGlobal].free() - free_before;
}

void PrefixCache::Remove(Block& leaf) {
  LAPIDARY_CHECK(leaf.first_child == nullptr);
  for (int f = 0; f < kKvFamilies; ++f) {
    if (leaf.pages[f] != kNoPage) UnnamePage(leaf, f);
  }
  if (leaf.next != nullptr) leaf.next->previous = leaf.previous;
  (leaf.previous != nullptr ? leaf.previous->next : leaf.parent->first_child) = leaf.next;
  const auto [begin, end] = blocks_.equal_range(leaf.hash);
  for (auto it = begin; it != end; ++it) {
    if (it->second.get() != &leaf) continue;
    blocks_.erase(it);
    return;
  }
}

void PrefixCache::RemoveSubtree(Block& top) {
  for (Block* block = &top;;) {  // not recursive: a chain has thousands of blocks
    while (block->first_child != nullptr) block = block->first_child;
    Block* const parent = block->parent;
    const bool last = block == &top;
    Remove(*block);
    if (last) return;
    block = parent;
  }
}

// Removes the block if it is worth nothing, then its parent, and so on.
void PrefixCache::Prune(Block* block) {
  while (block->parent != nullptr && Dead(*block)) {
    Block* const parent = block->parent;
    Remove(*block);
    block = parent;
  }
  if (block->parent == nullptr && block->first_child == nullptr) {
    roots_.erase(roots_.find(block->key));
  }
}

// After `block` lost its sliding page: prunes the ends of chains that needed it to be resumed.
void PrefixCache::PruneBelow(Block& block) {
  std::vector<Block*> leaves;
  std::vector<Block*> to_visit = {&block};
  while (!to_visit.empty()) {
    Block* const at = to_visit.back();
    to_visit.pop_back();
    const bool needs = FirstPageRead(at->depth * kPageTokens, window_) < block.depth;
    if (!needs && at != &block) continue;
    if (at->first_child == nullptr) leaves.push_back(at);
    for (Block* c = at->first_child; c != nullptr; c = c->next) to_visit.push_back(c);
  }
  for (Block* leaf : leaves) Prune(leaf);
}

}  // namespace lapidary
