// Against dense attention in double on the values that the pages hold (so bf16's rounding is
// exact). What remains is fp32: a score of dim d errs by about d/2 * 2^-24 of its terms' sizes, exp
// by 2^-22, a sum of n weights by n * 2^-24 at the very worst; 2e-5 of the values' size covers d =
// 512, n = 700.
#include "kernels/attention/attention.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace lapidary {
namespace {

// Runs everything on the caller, in turn: the kernel must not care.
class SerialTeam final : public ThreadTeam {
 public:
  explicit SerialTeam(int size) : size_(size) {}
  int size() const override { return size_; }
  void Run(const std::function<void(int)>& work) override {
    for (int t = 0; t < size_; ++t) work(t);
  }

 private:
  const int size_;
};

struct Case {
  int head_dim;
  std::vector<int> group_begin;
  int window;
  KvType type;
};

// A pool with shuffled pages, garbage in every slot that no token has filled, and the dense truth.
struct World {
  World(const Case& c, int tokens, int seed)
      : layout{c.type, c.head_dim},
        kv_heads(static_cast<int>(c.group_begin.size()) - 1),
        tokens(tokens) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    layer_offset = 3 * layout.head_bytes();
    page_bytes = layer_offset + kv_heads * layout.head_bytes() + 64;
    const int pages = (tokens + kPageTokens - 1) / kPageTokens;
    pool.resize(page_bytes * (pages + 2), 0);
    for (int p = 0; p < pages; ++p) table.push_back((p * 7 + 2) % pages);
    for (bool again = true; again;) {  // a permutation whatever `pages` is
      again = false;
      std::vector<int> seen(pages);
      for (int& p : table) {
        while (seen[p]) p = (p + 1) % pages;
        seen[p] = 1;
      }
    }
    const float nan = std::nanf("");
    const std::vector<float> garbage(c.head_dim, nan);
    for (int p = 0; p < pages; ++p) {
      for (int slot = 0; slot < kPageTokens; ++slot) {
        for (int h = 0; h < kv_heads; ++h) {
          WriteKv(layout, Head(p, h), slot, garbage.data(), garbage.data());
        }
      }
    }
    k.resize(size_t{1} * tokens * kv_heads * c.head_dim);
    v.resize(k.size());
    std::vector<float> row(c.head_dim), value(c.head_dim);
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < kv_heads; ++h) {
        for (float& x : row) x = normal(rng);
        for (float& x : value) x = normal(rng);
        uint8_t* head = Head(table[t / kPageTokens], h);
        WriteKv(layout, head, t % kPageTokens, row.data(), value.data());
        ReadKv(layout, head, t % kPageTokens, &k[(t * kv_heads + h) * c.head_dim],
               &v[(t * kv_heads + h) * c.head_dim]);
      }
    }
    q.resize(size_t{1} * tokens * c.group_begin.back() * c.head_dim);
    for (float& x : q) x = normal(rng) / std::sqrt(static_cast<float>(c.head_dim)) * 2;
  }
  uint8_t* Head(int page, int h) {
    return pool.data() + page * page_bytes + layer_offset + h * layout.head_bytes();
  }

  // Output of tokens [begin, end) of one or several calls' worth of chunk boundaries.
  std::vector<float> Run(const Case& c, const std::vector<int>& cuts, int threads,
                         AttentionKernel kernel) {
    const int width = c.group_begin.back() * c.head_dim;
    std::vector<float> out(q.size(), -1.0f);
    SerialTeam team(threads);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      AttentionParams p{.layout = layout,
                        .pool = pool.data(),
                        .page_bytes = page_bytes,
                        .layer_offset = layer_offset,
                        .group_begin = c.group_begin,
                        .window = c.window,
                        .q = q.data(),
                        .q_stride = width,
                        .out = out.data(),
                        .out_stride = width};
      PagedAttention(team, p,
                     {{.pages = table.data(),
                       .position = cuts[i],
                       .len = cuts[i + 1] - cuts[i],
                       .token = cuts[i]}},
                     kernel);
    }
    return out;
  }

  std::vector<double> Reference(const Case& c, int t, int head) const {
    int h = 0;
    while (c.group_begin[h + 1] <= head) ++h;
    const int d = c.head_dim, first = c.window > 0 ? std::max(0, t - c.window + 1) : 0;
    const float* query = &q[(size_t{1} * t * c.group_begin.back() + head) * d];
    std::vector<double> p, out(d);
    double best = -1e300, total = 0;
    for (int s = first; s <= t; ++s) {
      double score = 0;
      for (int i = 0; i < d; ++i) score += double{query[i]} * k[(s * kv_heads + h) * d + i];
      p.push_back(score);
      best = std::max(best, score);
    }
    for (double& x : p) total += x = std::exp(x - best);
    for (int s = first; s <= t; ++s) {
      for (int i = 0; i < d; ++i) out[i] += p[s - first] / total * v[(s * kv_heads + h) * d + i];
    }
    return out;
  }

  KvLayout layout;
  int kv_heads;
  int tokens;
  int64_t layer_offset = 0, page_bytes = 0;
  std::vector<uint8_t> pool;
  std::vector<int32_t> table;
  std::vector<float> k, v, q;
};

std::vector<AttentionKernel> Kernels() {
  std::vector<AttentionKernel> kernels = {AttentionKernel::kAvx2};
  if (BestAttentionKernel() == AttentionKernel::kAvx512) {
    kernels.push_back(AttentionKernel::kAvx512);
  }
  return kernels;
}

const Case kCases[] = {{12, {0, 4}, 0, KvType::kFp32},       {12, {0, 1, 4}, 5, KvType::kBf16},
                       {8, {0, 2, 4}, 4, KvType::kFp32},     {13, {0, 3}, 37, KvType::kBf16},
                       {64, {0, 4, 8}, 33, KvType::kFp32},   {256, {0, 4}, 100, KvType::kBf16},
                       {512, {0, 8}, 0, KvType::kBf16},      {256, {0, 16}, 1, KvType::kFp32},
                       {80, {0, 1, 2, 3}, 16, KvType::kBf16}};

TEST(AttentionTest, AgreesWithDenseDouble) {
  for (const Case& c : kCases) {
    const int tokens = c.head_dim > 100 ? 150 : 301;
    World w(c, tokens, c.head_dim);
    for (const AttentionKernel kernel : Kernels()) {
      const std::vector<float> out = w.Run(c, {0, tokens}, 2, kernel);
      for (int t = 0; t < tokens; t += 7) {
        for (int head = 0; head < c.group_begin.back(); ++head) {
          const auto expected = w.Reference(c, t, head);
          for (int i = 0; i < c.head_dim; ++i) {
            ASSERT_NEAR(out[(t * c.group_begin.back() + head) * c.head_dim + i], expected[i], 2e-5)
                << "dim " << c.head_dim << " window " << c.window << " token " << t << " head "
                << head;
          }
        }
      }
    }
  }
}

TEST(AttentionTest, ChunkingThreadsAndKernelChangeNoBit) {
  for (const Case& c : kCases) {
    const int tokens = 90;
    World w(c, tokens, 5);
    const auto whole = w.Run(c, {0, tokens}, 1, AttentionKernel::kAvx2);
    std::vector<int> single;
    for (int t = 0; t <= tokens; ++t) single.push_back(t);
    for (const AttentionKernel kernel : Kernels()) {
      EXPECT_EQ(whole, w.Run(c, {0, 1, 17, 18, 40, 41, 64, tokens}, 3, kernel)) << c.head_dim;
      EXPECT_EQ(whole, w.Run(c, single, 2, kernel)) << c.head_dim;
      EXPECT_EQ(whole, w.Run(c, {0, tokens}, 7, kernel)) << c.head_dim;
    }
  }
}

TEST(AttentionTest, SequencesSideBySideGetWhatTheyGetAlone) {
  const Case c{64, {0, 4, 8}, 20, KvType::kBf16};
  World a(c, 70, 1), b(c, 33, 2);
  const auto alone_a = a.Run(c, {0, 70}, 1, BestAttentionKernel());
  const auto alone_b = b.Run(c, {0, 33}, 1, BestAttentionKernel());
  // One pool: a's pages, then b's. The batch: one decode row of a, then all of b.
  const int width = 8 * 64;
  std::vector<uint8_t> pool = a.pool;
  pool.insert(pool.end(), b.pool.begin(), b.pool.end());
  std::vector<int32_t> table_b = b.table;
  for (int32_t& p : table_b) p += static_cast<int32_t>(a.pool.size() / a.page_bytes);
  std::vector<float> q(34 * width), out(34 * width);
  std::copy_n(a.q.end() - width, width, q.begin());
  std::copy(b.q.begin(), b.q.end(), q.begin() + width);
  SerialTeam team(2);
  AttentionParams p{.layout = a.layout,
                    .pool = pool.data(),
                    .page_bytes = a.page_bytes,
                    .layer_offset = a.layer_offset,
                    .group_begin = c.group_begin,
                    .window = c.window,
                    .q = q.data(),
                    .q_stride = width,
                    .out = q.data(),  // in place
                    .out_stride = width};
  PagedAttention(team, p,
                 {{.pages = a.table.data(), .position = 69, .len = 1, .token = 0},
                  {.pages = table_b.data(), .position = 0, .len = 33, .token = 1}});
  EXPECT_EQ(std::vector<float>(q.begin(), q.begin() + width),
            std::vector<float>(alone_a.end() - width, alone_a.end()));
  EXPECT_EQ(std::vector<float>(q.begin() + width, q.end()), alone_b);
}

TEST(AttentionTest, NothingToDo) {
  SerialTeam team(2);
  PagedAttention(team, {.layout = {KvType::kFp32, 8}, .group_begin = {0, 1}}, {});
}

}  // namespace
}  // namespace lapidary
