// Against dense attention in double on the values that the pages hold (so bf16's rounding is
// exact). What remains is fp32: a score of dim d errs by about d/2 * 2^-24 of its terms' sizes, exp
// by 2^-22, a sum of n weights by n * 2^-24 at the very worst; 2e-5 of the values' size covers d =
// 512, n = 700. Turning by two tables adds 2^-22 of a key's size to what the score's sum errs by.
#include "kernels/attention/attention.h"

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/elementwise/rope.h"

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
  KvFormat format = KvFormat::kSplit;
  int pairs = 0;  // > 0: keys are the turned values, times w

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "dim " << c.head_dim << " window " << c.window << " type "
               << static_cast<int>(c.type) << " format " << static_cast<int>(c.format);
  }
};

// k = R(p) (w v) in double, the angle being `angle(pair)`.
template <class Angle>
void TurnDouble(const Angle& angle, int pairs, int dim, double* k) {
  for (int i = 0; i < pairs; ++i) {
    const double a = k[i], b = k[i + dim / 2], x = angle(i);
    k[i] = a * std::cos(x) - b * std::sin(x);
    k[i + dim / 2] = b * std::cos(x) + a * std::sin(x);
  }
}

// A pool with shuffled pages, garbage in every slot that no token has filled, and the dense truth.
struct World {
  World(const Case& c, int tokens, int seed)
      : layout{c.type, c.head_dim, c.format, c.format == KvFormat::kSplit ? 0 : c.pairs},
        kv_heads(static_cast<int>(c.group_begin.size()) - 1),
        tokens(tokens),
        frequency(RopeFrequencies(1e6, c.head_dim, c.pairs, 1)),
        rotation(frequency) {
    rotation.Cover(tokens / kPageTokens + 1);
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
    for (int i = 0; i < c.head_dim; ++i) w.push_back(1 + 0.3f * normal(rng));
    k.resize(size_t{1} * tokens * kv_heads * c.head_dim);
    v.resize(k.size());
    std::vector<float> row(c.head_dim), value(c.head_dim), cos_sin(2 * c.pairs);
    for (int t = 0; t < tokens; ++t) {
      if (c.pairs > 0) RopeRow(t, frequency.data(), c.pairs, cos_sin.data());
      for (int h = 0; h < kv_heads; ++h) {
        for (float& x : row) x = normal(rng);
        for (float& x : value) x = normal(rng);
        if (c.pairs > 0) {
          for (int i = 0; i < c.head_dim; ++i) row[i] = value[i] * w[i];
          Rotate(cos_sin.data(), c.pairs, c.head_dim, row.data());
        }
        uint8_t* head = Head(table[t / kPageTokens], h);
        WriteKv(layout, head, t % kPageTokens, row.data(), value.data());
        const size_t at = size_t{1} * (t * kv_heads + h) * c.head_dim;
        ReadKv(layout, head, t % kPageTokens, row.data(), &v[at]);
        Rebuild(t, row, &v[at], &k[at]);
      }
    }
    q.resize(size_t{1} * tokens * c.group_begin.back() * c.head_dim);
    for (float& x : q) x = normal(rng) / std::sqrt(static_cast<float>(c.head_dim)) * 2;
  }
  uint8_t* Head(int page, int h) {
    return pool.data() + page * page_bytes + layer_offset + h * layout.head_bytes();
  }

  // The key that a page stands for, from what it keeps.
  void Rebuild(int t, const std::vector<float>& stored, const float* value, double* key) const {
    const int d = layout.head_dim;
    if (layout.format == KvFormat::kSplit) {
      std::copy(stored.begin(), stored.end(), key);
      return;
    }
    for (int i = 0; i < d; ++i) key[i] = double{w[i]} * value[i];
    if (layout.format == KvFormat::kFolded) {
      for (int i = 0; i < layout.rotated_pairs; ++i) {
        key[i] = stored[i];
        key[i + d / 2] = stored[i + d / 2];
      }
      return;
    }
    const auto angle = [&](int i) {
      const int place = t % kPageTokens;
      return double{static_cast<float>(place) * frequency[i]} +
             double{static_cast<float>(t - place) * frequency[i]};
    };
    TurnDouble(angle, layout.rotated_pairs, d, key);
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
                        .key_weight = w.data(),
                        .rotation = &rotation,
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
  std::vector<float> frequency;
  PageRotation rotation;
  std::vector<double> k;
  std::vector<float> v, q, w;
};

std::vector<AttentionKernel> Kernels() {
  std::vector<AttentionKernel> kernels = {AttentionKernel::kAvx2};
  if (BestAttentionKernel() == AttentionKernel::kAvx512) {
    kernels.push_back(AttentionKernel::kAvx512);
  }
  return kernels;
}

const Case kCases[] = {{12, {0, 4}, 0, KvType::kFp32},        {12, {0, 1, 4}, 5, KvType::kBf16},
                       {8, {0, 2, 4}, 4, KvType::kFp32},      {13, {0, 3}, 37, KvType::kBf16},
                       {64, {0, 4, 8}, 33, KvType::kFp32},    {256, {0, 4}, 100, KvType::kBf16},
                       {512, {0, 8}, 0, KvType::kBf16},       {256, {0, 16}, 1, KvType::kFp32},
                       {80, {0, 1, 2, 3}, 16, KvType::kBf16}, {256, {0, 4}, 100, KvType::kInt8},
                       {13, {0, 3}, 37, KvType::kInt8}};

// K = V layers: every format and element type, the released head size and odd ones, groups that
// make tiles of 12, 8, 4, 2 and 1 rows.
std::vector<Case> KeyIsValueCases() {
  std::vector<Case> cases;
  for (const KvType type : {KvType::kFp32, KvType::kBf16, KvType::kInt8}) {
    for (const KvFormat format : {KvFormat::kSplit, KvFormat::kFolded, KvFormat::kSingle}) {
      cases.push_back({512, {0, 8}, 0, type, format, 64});
      cases.push_back({128, {0, 3, 8}, 0, type, format, 16});
      cases.push_back({14, {0, 1, 3}, 0, type, format, 1});
      cases.push_back({12, {0, 5}, 40, type, format, 5});
      cases.push_back({96, {0, 2}, 0, type, format, 48});
    }
  }
  return cases;
}

std::vector<Case> AllCases() {
  std::vector<Case> cases(std::begin(kCases), std::end(kCases));
  const std::vector<Case> more = KeyIsValueCases();
  cases.insert(cases.end(), more.begin(), more.end());
  return cases;
}

TEST(AttentionTest, AgreesWithDenseDouble) {
  for (const Case& c : AllCases()) {
    const int tokens = c.head_dim > 100 ? 150 : 301;
    World w(c, tokens, c.head_dim);
    for (const AttentionKernel kernel : Kernels()) {
      const std::vector<float> out = w.Run(c, {0, tokens}, 2, kernel);
      for (int t = 0; t < tokens; t += 7) {
        for (int head = 0; head < c.group_begin.back(); ++head) {
          const auto expected = w.Reference(c, t, head);
          for (int i = 0; i < c.head_dim; ++i) {
            ASSERT_NEAR(out[(t * c.group_begin.back() + head) * c.head_dim + i], expected[i], 2e-5)
                << c << " token " << t << " head " << head;
          }
        }
      }
    }
  }
}

TEST(AttentionTest, ChunkingThreadsAndKernelChangeNoBit) {
  for (const Case& c : AllCases()) {
    const int tokens = 90;
    World w(c, tokens, 5);
    const auto whole = w.Run(c, {0, tokens}, 1, AttentionKernel::kAvx2);
    std::vector<int> single;
    for (int t = 0; t <= tokens; ++t) single.push_back(t);
    for (const AttentionKernel kernel : Kernels()) {
      EXPECT_EQ(whole, w.Run(c, {0, 1, 17, 18, 40, 41, 64, tokens}, 3, kernel)) << c;
      EXPECT_EQ(whole, w.Run(c, single, 2, kernel)) << c;
      EXPECT_EQ(whole, w.Run(c, {0, tokens}, 7, kernel)) << c;
    }
  }
}

// Several segments of keys: one tile through all of them, or each by another thread.
TEST(AttentionTest, SegmentsChangeNoBitAndAgree) {
  const int tokens = 2100;
  const Case cases[] = {{16, {0, 3}, 0, KvType::kFp32},
                        {16, {0, 3}, 1100, KvType::kBf16},
                        {16, {0, 1}, 100, KvType::kBf16},
                        {16, {0, 8, 9}, 0, KvType::kInt8, KvFormat::kFolded, 4},
                        {14, {0, 2}, 0, KvType::kFp32, KvFormat::kSingle, 1}};
  for (const Case& c : cases) {
    World w(c, tokens, 9);
    const auto whole = w.Run(c, {0, tokens}, 1, AttentionKernel::kAvx2);
    std::vector<int> late = {0, 1000};  // then one row at a time around the boundaries
    for (int t = 1001; t < tokens; t += t < 1030 || t > 2040 ? 1 : 501) late.push_back(t);
    late.push_back(tokens);
    for (const AttentionKernel kernel : Kernels()) {
      EXPECT_EQ(whole, w.Run(c, {0, tokens}, 64, kernel)) << c;
      EXPECT_EQ(whole, w.Run(c, late, 5, kernel)) << c;
      EXPECT_EQ(whole, w.Run(c, late, 1, kernel)) << c;
    }
    for (const int t : {1022, 1023, 1024, 1025, 2047, 2048, 2049, 2099}) {
      for (int head = 0; head < c.group_begin.back(); ++head) {
        const auto expected = w.Reference(c, t, head);
        for (int i = 0; i < c.head_dim; ++i) {
          // A sum of 2100 weights: three times that of 700.
          ASSERT_NEAR(whole[(t * c.group_begin.back() + head) * c.head_dim + i], expected[i], 6e-5)
              << c << " token " << t << " head " << head;
        }
      }
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

// fp32 pages of one K = V layer in three formats: what differs is the order of sums (2e-5, as
// above) and for single pages the angle, by at most 2^-23 t f_i. A pair of q and of k have about
// the sizes 2 sqrt(2 / 512) and sqrt(2); the f_i of 64 pairs sum to 18.4: a score at token 150
// moves by at most 0.177 * 2^-23 * 150 * 18.4 = 6e-5, an output of unit values by at most twice
// that.
TEST(AttentionTest, FormatsAgree) {
  const int tokens = 150;
  const Case split{512, {0, 8}, 0, KvType::kFp32, KvFormat::kSplit, 64};
  Case folded = split, single = split;
  folded.format = KvFormat::kFolded;
  single.format = KvFormat::kSingle;
  World a(split, tokens, 3), b(folded, tokens, 3), c(single, tokens, 3);
  const auto kernel = BestAttentionKernel();
  const auto x = a.Run(split, {0, tokens}, 1, kernel), y = b.Run(folded, {0, tokens}, 1, kernel),
             z = c.Run(single, {0, tokens}, 1, kernel);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(x[i], y[i], 2e-5) << i;
    ASSERT_NEAR(x[i], z[i], 1.4e-4) << i;
  }
  EXPECT_EQ(a.layout.head_bytes(), 16 * (512 + 512) * 4);
  EXPECT_EQ(b.layout.head_bytes(), 16 * (512 + 128) * 4);
  EXPECT_EQ(c.layout.head_bytes(), 16 * 512 * 4);
}

TEST(KvPageTest, ValuesHaveAPlaceEach) {
  for (const Case& c : KeyIsValueCases()) {
    const KvLayout layout{c.type, c.head_dim, c.format, c.format == KvFormat::kSplit ? 0 : c.pairs};
    std::vector<int> seen(layout.value_columns());
    for (int i = 0; i < c.head_dim; ++i) {
      ASSERT_LT(layout.ValuePlace(i), layout.value_columns()) << c;
      ++seen[layout.ValuePlace(i)];
    }
    EXPECT_EQ(*std::max_element(seen.begin(), seen.end()), 1) << c;
    EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), 0), c.head_dim) << c;
  }
}

TEST(KvPageTest, Int8ErrsByHalfACodeAndNothingElse) {
  const KvLayout layout{KvType::kInt8, 6};
  EXPECT_EQ(layout.head_bytes(), 128 + 512 + 128);  // keys, values padded to 32, two scales
  std::vector<uint8_t> page(layout.head_bytes());
  const float key[6] = {1.0f, -127.0f, 63.4f, 0.5f, 1.5f, -2.5f};
  const float value[6] = {0.01f, -0.02f, 0.127f, 1e-6f, 0, -0.127f};
  const float zero[6] = {};
  float k[6], v[6];
  WriteKv(layout, page.data(), 3, key, value);
  WriteKv(layout, page.data(), 4, zero, zero);  // a neighbour has a scale of its own
  ReadKv(layout, page.data(), 3, k, v);
  const float rounded[6] = {1, -127, 63, 0, 2, -2};  // ties to even
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(k[i], rounded[i]);
    EXPECT_LE(std::abs(v[i] - value[i]), 0.0005f * (1 + 1e-6f));
  }
  EXPECT_EQ(v[2], 0.127f);
  ReadKv(layout, page.data(), 4, k, v);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(k[i], 0.0f);
  // What is not a number stays none.
  const float bad[6] = {1, 2, std::nanf(""), 3, 4, 5};
  WriteKv(layout, page.data(), 3, key, bad);
  ReadKv(layout, page.data(), 3, k, v);
  EXPECT_EQ(k[1], -127.0f);
  EXPECT_TRUE(std::isnan(v[1]));
}

// Turning back and forth is turning by p f_i to 2^-23 p f_i, plus the tables' own 2^-23 each.
TEST(PageRotationTest, TwoTurnsMakeOne) {
  const auto frequency = RopeFrequencies(1e6, 512, 64, 1);
  PageRotation rotation(frequency);
  rotation.Cover(40);
  rotation.Cover(16384);
  for (const int p : {0, 1, 15, 16, 17, 200, 639, 640, 1100, 32767, 262143}) {
    const float* place = rotation.in_page() + p % 16 * 128;
    const float* begin = rotation.page_begin() + p / 16 * 128;
    for (int i = 0; i < 64; ++i) {
      const double c = double{place[i]} * begin[i] - double{place[64 + i]} * begin[64 + i];
      const double s = double{place[64 + i]} * begin[i] + double{place[i]} * begin[64 + i];
      const double angle = double{static_cast<float>(p) * frequency[i]};
      const double bound = 0x1p-23 * angle + 4 * 0x1p-23;
      ASSERT_NEAR(c, std::cos(angle), bound) << p << " " << i;
      ASSERT_NEAR(s, std::sin(angle), bound) << p << " " << i;
    }
  }
}

TEST(AttentionTest, NothingToDo) {
  SerialTeam team(2);
  PagedAttention(team, {.layout = {KvType::kFp32, 8}, .group_begin = {0, 1}}, {});
}

}  // namespace
}  // namespace lapidary
