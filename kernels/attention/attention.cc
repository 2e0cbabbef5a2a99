#include "kernels/attention/attention.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "common/base/check.h"
#include "kernels/attention/internal/tile.h"

namespace lapidary {
namespace {

using attention_internal::kMaxColumns;
using attention_internal::kMaxRows;
using attention_internal::RunTileAvx2;
using attention_internal::RunTileAvx512;
using attention_internal::TileScratch;
using attention_internal::TileTask;

// Rows [begin, end) of one sequence and one kv head; row i is token i / group, query head i %
// group.
struct Unit {
  int32_t sequence;
  int32_t kv_head;
  int32_t begin;
  int32_t end;
};

// Cuts the batch into units of at most kMaxRows rows, smaller where there would be fewer units than
// threads. How it is cut changes no bit.
std::vector<Unit> Cut(const AttentionParams& params,
                      const std::vector<AttentionSequence>& sequences, int threads) {
  const int kv_heads = static_cast<int>(params.group_begin.size()) - 1;
  int64_t rows = 0;
  for (const AttentionSequence& s : sequences) rows += int64_t{s.len} * params.group_begin.back();
  int64_t most = std::clamp<int64_t>((rows + threads - 1) / threads, 1, kMaxRows);
  std::vector<Unit> units;
  for (int32_t s = 0; s < static_cast<int32_t>(sequences.size()); ++s) {
    for (int32_t h = 0; h < kv_heads; ++h) {
      const int32_t group = params.group_begin[h + 1] - params.group_begin[h];
      const int32_t count = sequences[s].len * group;
      for (int32_t begin = 0; begin < count; begin += static_cast<int32_t>(most)) {
        units.push_back({s, h, begin, std::min(count, begin + static_cast<int32_t>(most))});
      }
    }
  }
  return units;
}

TileTask MakeTask(const AttentionParams& params, const AttentionSequence& sequence,
                  const Unit& unit) {
  TileTask task;
  task.type = params.layout.type;
  task.head_dim = params.layout.head_dim;
  task.key_columns = params.layout.key_columns();
  task.value_columns = params.layout.value_columns();
  task.key_bytes = params.layout.key_bytes();
  task.value_bytes = params.layout.value_bytes();
  task.format = params.layout.format;
  task.rotated_pairs = params.layout.rotated_pairs;
  task.padded_pairs = params.layout.padded_pairs();
  task.key_weight = params.key_weight;
  if (params.rotation != nullptr) {
    task.in_page = params.rotation->in_page();
    task.page_begin = params.rotation->page_begin();
  }
  task.pool = params.pool + params.layer_offset + unit.kv_head * params.layout.head_bytes();
  task.page_bytes = params.page_bytes;
  task.pages = sequence.pages;
  task.rows = unit.end - unit.begin;
  const int first_head = params.group_begin[unit.kv_head];
  const int group = params.group_begin[unit.kv_head + 1] - first_head;
  for (int r = 0; r < task.rows; ++r) {
    const int token = (unit.begin + r) / group;
    const int64_t head = first_head + (unit.begin + r) % group;
    const int64_t row = sequence.token + token;
    task.q[r] = params.q + row * params.q_stride + head * params.layout.head_dim;
    task.out[r] = params.out + row * params.out_stride + head * params.layout.head_dim;
    const int32_t position = sequence.position + token;
    task.first[r] = params.window > 0 ? std::max(0, position - params.window + 1) : 0;
    task.last[r] = position + 1;
  }
  return task;
}

TileScratch& ThreadScratch() {
  thread_local std::unique_ptr<TileScratch> scratch = std::make_unique<TileScratch>();
  return *scratch;
}

}  // namespace

AttentionKernel BestAttentionKernel() {
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has_avx512 ? AttentionKernel::kAvx512 : AttentionKernel::kAvx2;
}

void PagedAttention(ThreadTeam& team, const AttentionParams& params,
                    const std::vector<AttentionSequence>& sequences, AttentionKernel kernel) {
  LAPIDARY_CHECK(params.layout.head_dim <= kMaxColumns);
  const KvFormat format = params.layout.format;
  LAPIDARY_CHECK(format == KvFormat::kSplit || params.key_weight != nullptr);
  LAPIDARY_CHECK(format != KvFormat::kSingle || params.rotation != nullptr);
  const auto run = kernel == AttentionKernel::kAvx512 ? RunTileAvx512 : RunTileAvx2;
  const std::vector<Unit> units = Cut(params, sequences, team.size());
  const auto work = [&](int64_t i) {
    run(MakeTask(params, sequences[units[i].sequence], units[i]), ThreadScratch());
  };
  const auto count = static_cast<int64_t>(units.size());
  if (count <= 1 || team.size() == 1) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  // Taken from the back: the last rows of a chunk see the most keys.
  std::atomic<int64_t> left{count};
  team.Run([&](int) {
    for (int64_t i = left.fetch_sub(1, std::memory_order_relaxed) - 1; i >= 0;
         i = left.fetch_sub(1, std::memory_order_relaxed) - 1) {
      work(i);
    }
  });
}

}  // namespace lapidary
