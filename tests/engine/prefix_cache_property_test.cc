// Random traces of sequences that begin alike, over small pools, against
//
// - a device that remembers what was written where: every position that a query reads holds what
//   its sequence would have computed itself, and nobody writes what another can read;
// - a dumb twin of the cache: a list of whole prefixes, searched from end to end, where what is
//   worth nothing is found by looking at everything again and again. Both must agree about every
//   page after every call.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "engine/kv_manager.h"

namespace lapidary {
namespace {

constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);

uint64_t EverythingCollides(uint64_t, std::span<const TokenId>) { return 7; }
uint64_t MuchCollides(uint64_t, std::span<const TokenId> tokens) { return tokens[0] % 2; }

struct Sequence {
  std::string key;
  std::vector<TokenId> tokens;
  int32_t computed = 0;
  SequencePages pages;
  int32_t twin_published = 0;
  uint64_t twin_last = 0;
};

class DumbTwin {
 public:
  DumbTwin(const std::array<int32_t, kKvFamilies>& pages, int32_t window)
      : window_(window), present_{window > 0, pages[kGlobal] > 0} {
    for (int f = 0; f < kKvFamilies; ++f) readers_[f].resize(present_[f] ? pages[f] : 0, 0);
  }

  int32_t readers(int f, int32_t page) const { return readers_[f][page]; }
  bool named(int f, int32_t page) const { return EntryOf(f, page) != nullptr; }
  uint64_t IdOf(const Sequence& s, int32_t blocks) {
    const Entry* entry = Known(s, blocks);
    return entry != nullptr ? entry->id : 0;
  }

  int32_t Find(const Sequence& s, int32_t most_blocks) {
    int32_t known = 0, resumable = 0;
    while (known < most_blocks && Known(s, known + 1) != nullptr) {
      Known(s, ++known)->shared = true;
      bool held = true;
      for (int32_t p = known * kPageTokens - window_ + 1; p < known * kPageTokens; ++p) {
        if (p < 0 || !present_[kSliding]) continue;
        held = held && Known(s, p / kPageTokens + 1)->page[kSliding] >= 0;
      }
      if (held) resumable = known;
    }
    return resumable;
  }

  void AddReader(int f, int32_t page) {
    ++readers_[f][page];
    Forget(f, page);
  }

  void Allocated(int f, int32_t page) {
    bool full = true;
    for (int32_t p = 0; p < std::ssize(readers_[f]); ++p) full = full && !IsFree(f, p);
    if (full) Evict(f);
    ASSERT_TRUE(IsFree(f, page)) << "family " << f << ", page " << page;
    readers_[f][page] = 1;
  }

  void Publish(Sequence& s) {
    const int32_t blocks = s.computed / kPageTokens;
    if (blocks <= s.twin_published) return;
    Entry* last = nullptr;
    for (Entry& e : entries_) {
      if (e.id == s.twin_last) last = &e;
    }
    for (int32_t n = last == nullptr ? 1 : s.twin_published + 1; n <= blocks; ++n) {
      Entry* entry = Known(s, n);
      if (entry != nullptr) {
        entry->shared = true;
      } else {
        entry = &entries_.emplace_back();
        entry->id = next_id_++;
        entry->key = s.key;
        entry->prefix.assign(s.tokens.begin(), s.tokens.begin() + n * kPageTokens);
      }
      for (int f = 0; f < kKvFamilies; ++f) {
        if (!present_[f] || n <= s.pages.first_live[f]) continue;
        const int32_t old = entry->page[f];
        if (old >= 0 && readers_[f][old] > 0) continue;
        if (old >= 0) Forget(f, old);
        entry->page[f] = s.pages.table[f][n - 1].value;
      }
      s.twin_published = n;
      s.twin_last = entry->id;
    }
  }

  void Release(int f, int32_t page, bool passed_over) {
    --readers_[f][page];
    const Entry* entry = EntryOf(f, page);
    if (readers_[f][page] == 0 && entry != nullptr) {
      (passed_over && !entry->shared ? sooner_ : later_)[f].push_back(page);
    }
    RemoveWorthless();
  }

  void Touch(const Sequence& s) {
    const bool alive = std::any_of(entries_.begin(), entries_.end(),
                                   [&](const Entry& e) { return e.id == s.twin_last; });
    for (int32_t n = alive ? s.twin_published : 0; n > 0; --n) {
      for (int f = 0; f < kKvFamilies; ++f) {
        const int32_t page = Known(s, n)->page[f];
        const int32_t first_read = (s.twin_published * kPageTokens - window_ + 1) / kPageTokens;
        if (page < 0 || readers_[f][page] > 0) continue;
        if (f == kSliding && n <= first_read) continue;
        Forget(f, page);
        later_[f].push_back(page);
      }
    }
  }

 private:
  struct Entry {
    uint64_t id = 0;
    std::string key;
    std::vector<TokenId> prefix;
    std::array<int32_t, kKvFamilies> page = {-1, -1};
    bool shared = false;
  };

  static bool BeginsWith(const Entry& e, const Entry& with) {
    return e.key == with.key && e.prefix.size() >= with.prefix.size() &&
           std::equal(with.prefix.begin(), with.prefix.end(), e.prefix.begin());
  }
  Entry* Known(const Sequence& s, int32_t blocks) {
    for (Entry& e : entries_) {
      if (e.key == s.key && std::ssize(e.prefix) == blocks * kPageTokens &&
          std::equal(e.prefix.begin(), e.prefix.end(), s.tokens.begin())) {
        return &e;
      }
    }
    return nullptr;
  }
  const Entry* EntryOf(int f, int32_t page) const {
    for (const Entry& e : entries_) {
      if (e.page[f] == page) return &e;
    }
    return nullptr;
  }
  bool IsFree(int f, int32_t page) const { return readers_[f][page] == 0 && !named(f, page); }
  void Forget(int f, int32_t page) {
    std::erase(sooner_[f], page);
    std::erase(later_[f], page);
  }

  void Evict(int f) {
    const int32_t page = sooner_[f].empty() ? later_[f].at(0) : sooner_[f][0];
    const Entry victim = *EntryOf(f, page);
    if (f == kGlobal) {
      for (size_t i = entries_.size(); i-- > 0;) {
        if (BeginsWith(entries_[i], victim)) Remove(i);
      }
    } else {
      for (Entry& e : entries_) {
        if (e.id == victim.id) e.page[f] = -1;
      }
      Forget(f, page);
    }
    RemoveWorthless();
  }

  void Remove(size_t i) {
    for (int f = 0; f < kKvFamilies; ++f) {
      if (entries_[i].page[f] >= 0) Forget(f, entries_[i].page[f]);
    }
    entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  bool Worthless(const Entry& e) {
    bool empty = true;
    for (int f = 0; f < kKvFamilies; ++f) {
      if (e.page[f] < 0) continue;
      if (readers_[f][e.page[f]] > 0) return false;
      empty = false;
    }
    for (const Entry& other : entries_) {
      if (other.prefix.size() > e.prefix.size() && BeginsWith(other, e)) return false;
    }
    if (empty) return true;
    Sequence s;
    s.key = e.key;
    s.tokens = e.prefix;
    const auto blocks = static_cast<int32_t>(e.prefix.size() / kPageTokens);
    std::vector<bool> shared;
    for (const Entry& other : entries_) shared.push_back(other.shared);
    const bool resumable = Find(s, blocks) == blocks;
    for (size_t i = 0; i < entries_.size(); ++i) entries_[i].shared = shared[i];
    return !resumable;
  }

  void RemoveWorthless() {
    for (size_t i = 0; i < entries_.size();) {
      if (Worthless(entries_[i])) {
        Remove(i);
        i = 0;
      } else {
        ++i;
      }
    }
  }

  const int32_t window_;
  const std::array<bool, kKvFamilies> present_;
  std::array<std::vector<int32_t>, kKvFamilies> readers_;
  std::array<std::vector<int32_t>, kKvFamilies> sooner_, later_;  // cached; the oldest first
  std::vector<Entry> entries_;
  uint64_t next_id_ = 1;
};

class Trace {
 public:
  explicit Trace(uint32_t seed)
      : random_(seed),
        window_(Pick(6) == 0 ? 0 : 1 + Pick(60)),
        pages_{window_ == 0 ? 0 : PagesSpanned(window_) + Pick(14),
               window_ > 0 && Pick(6) == 0 ? 0 : 6 + Pick(16)},
        kv_(pages_, window_, true,
            Pick(3) == 0   ? EverythingCollides
            : Pick(2) == 0 ? MuchCollides
                           : HashBlock),
        twin_(pages_, window_) {}

  void Run() {
    for (int i = 0; i < 250 && !testing::Test::HasFatalFailure(); ++i) {
      const int what = Pick(10);
      if (what < 2) Begin();
      if (what >= 2 && what < 8) Compute();
      if (what == 8) End();
      Check();
    }
    while (!live_.empty() && !testing::Test::HasFatalFailure()) {
      End();
      Check();
    }
    evicted = kv_.evicted_pages();
  }

  int hits = 0;
  int64_t evicted = 0;

 private:
  int32_t Pick(int32_t below) { return static_cast<int32_t>(random_() % below); }

  // Blocks of one token sixteen times: of three kinds, so that many begin alike.
  void Begin() {
    if (live_.size() == 4) return;
    auto s = std::make_unique<Sequence>();
    s->key = Pick(4) == 0 ? "b" : "a";
    const int32_t blocks = 1 + Pick(9);
    for (int32_t b = 0; b < blocks; ++b) {
      s->tokens.insert(s->tokens.end(), kPageTokens, Pick(4) == 0 ? Pick(3) : 0);
    }
    s->tokens.resize(s->tokens.size() - Pick(kPageTokens));
    const auto len = static_cast<int32_t>(s->tokens.size());
    const int32_t limit = Pick(3) == 0 ? Pick(len + 20) : 1 << 30;
    const int32_t expected = twin_.Find(*s, std::min(limit, len - 1) / kPageTokens);
    s->computed = kv_.Attach(s->pages, s->key, s->tokens, limit);
    ASSERT_EQ(s->computed, expected * kPageTokens);
    hits += s->computed > 0 ? 1 : 0;
    for (int f = 0; f < kKvFamilies; ++f) {
      for (size_t i = s->pages.first_live[f]; i < s->pages.table[f].size(); ++i) {
        twin_.AddReader(f, s->pages.table[f][i].value);
      }
    }
    s->twin_published = expected;
    s->twin_last = twin_.IdOf(*s, expected);
    CheckReads(*s, s->computed);
    live_.push_back(std::move(s));
  }

  void Compute() {
    if (live_.empty()) return;
    Sequence& s = *live_[Pick(static_cast<int32_t>(live_.size()))];
    const auto total = static_cast<int32_t>(s.tokens.size());
    const int32_t start = s.computed;
    const int32_t wanted = std::min(total, start + 1 + Pick(50));
    const int32_t end = kv_.ReachableLength(s.pages, wanted);
    if (end <= start) return;
    const auto added = kv_.Extend(s.pages, end);
    for (int f = 0; f < kKvFamilies; ++f) {
      for (PageId page : added[f]) twin_.Allocated(f, page.value);
    }
    for (int32_t p = start; p < end; ++p) Write(s, p);
    CheckReads(s, start);
    s.computed = end;
    twin_.Publish(s);
    kv_.Publish(s.pages, s.key, s.tokens, end);
    const int32_t first_live = s.pages.first_live[kSliding];
    kv_.FreeBehindWindow(s.pages, end);
    for (int32_t i = first_live; i < s.pages.first_live[kSliding]; ++i) {
      twin_.Release(kSliding, s.pages.table[kSliding][i].value, true);
    }
    if (end == total && Pick(3) == 0 && total < 200) s.tokens.push_back(Pick(2));  // generates
  }

  void End() {
    if (live_.empty()) return;
    const auto at = live_.begin() + Pick(static_cast<int32_t>(live_.size()));
    Sequence& s = **at;
    for (int f = 0; f < kKvFamilies; ++f) {
      for (size_t i = s.pages.first_live[f]; i < s.pages.table[f].size(); ++i) {
        twin_.Release(f, s.pages.table[f][i].value, false);
      }
    }
    twin_.Touch(s);
    kv_.FreeAll(s.pages);
    live_.erase(at);
  }

  // What a position holds: the whole of what was before it.
  std::string Content(const Sequence& s, int32_t position) const {
    return s.key + ":" + std::string(s.tokens.begin(), s.tokens.begin() + position + 1);
  }

  void Write(const Sequence& s, int32_t position) {
    for (int f = 0; f < kKvFamilies; ++f) {
      if (kv_.pool(static_cast<KvFamily>(f)).total() == 0) continue;
      const PageId page = s.pages.table[f][position / kPageTokens];
      ASSERT_EQ(kv_.pool(static_cast<KvFamily>(f)).readers(page), 1) << "another reads it";
      ASSERT_FALSE(kv_.pool(static_cast<KvFamily>(f)).named(page)) << "others may come to read it";
      device_[f][{page.value, position % kPageTokens}] = Content(s, position);
    }
  }

  // What the query at `query` and all later ones read and is computed.
  void CheckReads(const Sequence& s, int32_t query) {
    const int32_t end = std::max(query, s.computed);
    for (int f = 0; f < kKvFamilies; ++f) {
      if (kv_.pool(static_cast<KvFamily>(f)).total() == 0) continue;
      for (int32_t p = f == kSliding ? std::max(query - window_ + 1, 0) : 0; p < end; ++p) {
        const auto page = s.pages.table[f][p / kPageTokens].value;
        ASSERT_EQ((device_[f][{page, p % kPageTokens}]), Content(s, p)) << "position " << p;
      }
    }
  }

  void Check() {
    for (int f = 0; f < kKvFamilies; ++f) {
      const PagePool& pool = kv_.pool(static_cast<KvFamily>(f));
      ASSERT_EQ(pool.free() + pool.used() + pool.cached(), pool.total());
      std::map<int32_t, int32_t> readers;
      for (const auto& s : live_) {
        for (size_t i = s->pages.first_live[f]; i < s->pages.table[f].size(); ++i) {
          ++readers[s->pages.table[f][i].value];
        }
      }
      int32_t cached = 0;
      for (int32_t page = 0; page < pool.total(); ++page) {
        SCOPED_TRACE(testing::Message() << "family " << f << ", page " << page);
        ASSERT_EQ(pool.readers(PageId{page}), readers[page]);
        ASSERT_EQ(twin_.readers(f, page), readers[page]);
        ASSERT_EQ(pool.named(PageId{page}), twin_.named(f, page));
        cached += readers[page] == 0 && pool.named(PageId{page}) ? 1 : 0;
      }
      ASSERT_EQ(pool.cached(), cached);
    }
  }

  std::mt19937 random_;
  const int32_t window_;
  const std::array<int32_t, kKvFamilies> pages_;
  KvManager kv_;
  DumbTwin twin_;
  std::vector<std::unique_ptr<Sequence>> live_;
  std::array<std::map<std::pair<int32_t, int32_t>, std::string>, kKvFamilies> device_;
};

TEST(PrefixCacheProperty, AgreesWithADumbTwinOverRandomTraces) {
  constexpr uint32_t kFirstSeed = 1, kTraces = 300;
  int64_t hits = 0, evicted = 0;
  for (uint32_t seed = kFirstSeed; seed < kFirstSeed + kTraces; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Trace trace(seed);
    trace.Run();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    hits += trace.hits;
    evicted += trace.evicted;
  }
  EXPECT_GT(hits, 1000);  // the traces reach the interesting part
  EXPECT_GT(evicted, 1000);
}

}  // namespace
}  // namespace lapidary
