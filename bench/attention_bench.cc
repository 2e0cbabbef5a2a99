// Paged attention alone, as CSV.
//
// attention_bench [threads]: case, best milliseconds, GOP/s of the live pairs, share of the fp32
// FMA roof of the same threads, GB/s of keys and values where each is read once.
//
// attention_bench [threads] formats: page formats and types of K = V layers on the global layer of
// 31B (4 kv heads of 512, 8 queries each), turn by turn: best CPU time per thread of the rounds;
// time and bytes against split bf16.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/ceilings.h"
#include "kernels/elementwise/rope.h"
#include "kernels/huge_buffer.h"

namespace lapidary {
namespace {

struct Case {
  const char* name;
  int sequences, len, context;  // context: keys before the first token
  int kv_heads, group, head_dim, window;
  KvType type;
};

constexpr Case kCases[] = {
    {"prefill 512, d 256, window 512", 1, 512, 0, 1, 4, 256, 512, KvType::kBf16},
    {"prefill 512, d 256, window 512, fp32", 1, 512, 0, 1, 4, 256, 512, KvType::kFp32},
    {"prefill 256 at 4096, d 512", 1, 256, 4096, 1, 8, 512, 0, KvType::kBf16},
    {"decode 16 at 2048, d 512", 16, 1, 2048, 1, 8, 512, 0, KvType::kBf16},
    {"decode 16 at 2048, d 256, window 512", 16, 1, 2048, 4, 2, 256, 512, KvType::kBf16},
    {"decode 288 at 300, d 256", 288, 1, 300, 1, 4, 256, 0, KvType::kBf16},  // 88 MB: from memory
    {"decode 1 at 512, d 256", 1, 1, 512, 1, 4, 256, 0, KvType::kBf16},
    {"decode 1 at 8192, d 256", 1, 1, 8192, 1, 4, 256, 0, KvType::kBf16},
};

void Measure(ThreadTeam& team, const Case& c, double roof) {
  using Clock = std::chrono::steady_clock;
  const KvLayout layout{c.type, c.head_dim};
  const int pages = (c.context + c.len) / kPageTokens + 1;
  const int64_t page_bytes = c.kv_heads * layout.head_bytes();
  const HugeBuffer pool(static_cast<size_t>(c.sequences * pages * page_bytes));
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> row(c.head_dim);
  for (float& v : row) v = normal(rng);
  for (int64_t p = 0; p < int64_t{c.sequences} * pages; ++p) {
    for (int h = 0; h < c.kv_heads; ++h) {
      for (int s = 0; s < kPageTokens; ++s) {
        row[rng() % row.size()] = normal(rng);
        WriteKv(layout, pool.data() + p * page_bytes + h * layout.head_bytes(), s, row.data(),
                row.data());
      }
    }
  }
  std::vector<std::vector<int32_t>> tables(c.sequences);
  std::vector<AttentionSequence> sequences;
  for (int s = 0; s < c.sequences; ++s) {
    for (int p = 0; p < pages; ++p) tables[s].push_back(p * c.sequences + s);
    sequences.push_back(
        {.pages = tables[s].data(), .position = c.context, .len = c.len, .token = s * c.len});
  }
  const int64_t width = int64_t{c.kv_heads} * c.group * c.head_dim;
  std::vector<float> q(c.sequences * c.len * width, 0.01f), out(q.size());
  AttentionParams params{.layout = layout,
                         .pool = pool.data(),
                         .page_bytes = page_bytes,
                         .group_begin = {},
                         .window = c.window,
                         .q = q.data(),
                         .q_stride = width,
                         .out = out.data(),
                         .out_stride = width};
  for (int h = 0; h <= c.kv_heads; ++h) params.group_begin.push_back(h * c.group);
  double pairs = 0;  // live (row, key) pairs
  for (int t = 0; t < c.len; ++t) {
    const int keys = c.context + t + 1;
    pairs += double{1} * c.sequences * c.kv_heads * c.group *
             (c.window > 0 ? std::min(c.window, keys) : keys);
  }
  double best = 1e30, total = 0;
  for (int i = 0; i < 200 && total < 2; ++i) {
    const auto begin = Clock::now();
    PagedAttention(team, params, sequences);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::min(best, seconds);
    total += seconds;
  }
  const double gops = pairs * c.head_dim * 4 / best * 1e-9;  // two products
  const double bytes = pairs / c.group * static_cast<double>(layout.head_bytes()) / kPageTokens;
  std::printf("%s,%.3f,%.0f,%.0f%%,%.1f\n", c.name, best * 1e3, gops, 100 * gops / roof,
              c.len > 1 ? 0.0 : bytes / best * 1e-9);
}

// Of all threads: a ratio of two of them stands on a machine that others use, too.
double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// One pool of the comparison: its pages hold a few random ones over and over, in shuffled order.
class FormatCase {
 public:
  static constexpr int kHeads = 4, kGroup = 8, kDim = 512, kPairs = 64;

  // `rows` new tokens behind the end of each context.
  FormatCase(KvType type, KvFormat format, int sequences, int context, int rows,
             const PageRotation& rotation)
      : layout_{type, kDim, format, format == KvFormat::kSplit ? 0 : kPairs},
        pages_(context / kPageTokens),
        pool_(static_cast<size_t>(bytes(sequences * pages_))),
        q_(int64_t{sequences} * rows * kHeads * kGroup * kDim),
        out_(q_.size()),
        weight_(kDim, 1.0f) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (float& x : q_) x = 0.05f * normal(rng);
    constexpr int kDistinct = 64;
    std::vector<float> key(kDim), value(kDim);
    for (int p = 0; p < sequences * pages_; ++p) {
      uint8_t* page = pool_.data() + bytes(p);
      if (p >= kDistinct) {
        std::memcpy(page, pool_.data() + bytes(p % kDistinct), bytes(1));
        continue;
      }
      for (int i = 0; i < kHeads * kPageTokens; ++i) {
        for (float& x : key) x = normal(rng);
        for (float& x : value) x = normal(rng);
        WriteKv(layout_, page + i / kPageTokens * layout_.head_bytes(), i % kPageTokens, key.data(),
                value.data());
      }
    }
    table_.resize(sequences * pages_);
    for (size_t i = 0; i < table_.size(); ++i) table_[i] = static_cast<int32_t>(i);
    std::shuffle(table_.begin(), table_.end(), rng);
    for (int s = 0; s < sequences; ++s) {
      sequences_.push_back({.pages = table_.data() + s * pages_,
                            .position = context - rows,
                            .len = rows,
                            .token = s * rows});
    }
    params_ = {.layout = layout_,
               .pool = pool_.data(),
               .page_bytes = bytes(1),
               .group_begin = {},
               .key_weight = weight_.data(),
               .rotation = &rotation,
               .q = q_.data(),
               .q_stride = kHeads * kGroup * kDim,
               .out = out_.data(),
               .out_stride = kHeads * kGroup * kDim};
    for (int h = 0; h <= kHeads; ++h) params_.group_begin.push_back(h * kGroup);
  }

  int64_t bytes(int64_t pages) const { return pages * kHeads * layout_.head_bytes(); }
  int64_t total_bytes() const { return bytes(static_cast<int64_t>(table_.size())); }
  void Round(ThreadTeam& team) {
    const double begin = CpuSeconds();
    PagedAttention(team, params_, sequences_);
    seconds.push_back((CpuSeconds() - begin) / team.size());
  }

  std::vector<double> seconds;

 private:
  const KvLayout layout_;
  const int pages_;
  HugeBuffer pool_;
  std::vector<float> q_, out_, weight_;
  std::vector<int32_t> table_;
  std::vector<AttentionSequence> sequences_;
  AttentionParams params_;
};

void CompareFormats(ThreadTeam& team) {
  constexpr int kRounds = 15;
  constexpr const char* kFormats[] = {"split", "folded", "single"};
  struct Shape {
    int context, sequences, rows;
  };
  PageRotation rotation(RopeFrequencies(1e6, FormatCase::kDim, FormatCase::kPairs, 1));
  rotation.Cover(32768 / kPageTokens);
  std::printf(
      "context,sequences,rows,type,format,best_cpu_ms,median_cpu_ms,GB/s,GOP/s,time,bytes\n");
  for (const Shape shape :
       {Shape{8192, 1, 1}, Shape{8192, 4, 1}, Shape{32768, 1, 1}, Shape{8192, 1, 64}}) {
    std::vector<std::unique_ptr<FormatCase>> cases;
    for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
      for (const KvFormat format : {KvFormat::kSplit, KvFormat::kFolded, KvFormat::kSingle}) {
        cases.push_back(std::make_unique<FormatCase>(type, format, shape.sequences, shape.context,
                                                     shape.rows, rotation));
      }
    }
    for (int round = 0; round < kRounds; ++round) {
      for (auto& c : cases) c->Round(team);
    }
    for (auto& c : cases) std::sort(c->seconds.begin(), c->seconds.end());
    const FormatCase& base = *cases[0];
    for (size_t i = 0; i < cases.size(); ++i) {
      const FormatCase& c = *cases[i];
      const double best = c.seconds.front();
      const auto bytes = static_cast<double>(c.total_bytes());
      const double pairs = double{1} * shape.context * shape.sequences * shape.rows *
                           FormatCase::kHeads * FormatCase::kGroup;
      std::printf("%d,%d,%d,%s,%s,%.2f,%.2f,%.1f,%.0f,%.2f,%.3f\n", shape.context, shape.sequences,
                  shape.rows, i < 3 ? "bf16" : "int8", kFormats[i % 3], best * 1e3,
                  c.seconds[kRounds / 2] * 1e3, bytes / best * 1e-9,
                  4e-9 * FormatCase::kDim * pairs / best, best / base.seconds.front(),
                  bytes / static_cast<double>(base.total_bytes()));
    }
  }
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  using namespace lapidary;
  const auto team = ThreadTeam::Create(argc > 1 ? std::atoi(argv[1]) : 2, {});
  const HugeBuffer buffer(64 << 20);
  const Ceilings ceilings =
      MeasureCeilings(*team, buffer.data(), static_cast<int64_t>(buffer.bytes()), 20);
  const double roof = std::max(ceilings.gops[static_cast<int>(Arithmetic::kFmaAvx512)],
                               ceilings.gops[static_cast<int>(Arithmetic::kFmaAvx2)]);
  std::printf("# fp32 FMA roof %.0f GOP/s, read %.1f GB/s, %d threads\n", roof, ceilings.read_gbs,
              team->size());
  if (argc > 2 && std::string_view(argv[2]) == "formats") {
    CompareFormats(*team);
    return 0;
  }
  std::printf("case,best_ms,GOP/s,of the roof,GB/s of decode\n");
  for (const Case& c : kCases) Measure(*team, c, roof);
}
