// Paged attention alone: CSV of case, best milliseconds, GOP/s of the live pairs, share of the fp32
// FMA roof of the same threads.   attention_bench [threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/ceilings.h"
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
  std::printf("%s,%.3f,%.0f,%.0f%%\n", c.name, best * 1e3, gops, 100 * gops / roof);
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
  std::printf("case,best_ms,GOP/s,of the roof\n");
  for (const Case& c : kCases) Measure(*team, c, roof);
}
