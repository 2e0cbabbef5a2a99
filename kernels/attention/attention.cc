#include "kernels/attention/attention.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "common/base/check.h"
#include "kernels/attention/internal/tile.h"

namespace lapidary {
namespace {

using attention_internal::FoldRowAvx2;
using attention_internal::FoldRowAvx512;
using attention_internal::kMaxColumns;
using attention_internal::kMaxRows;
using attention_internal::kSegmentTokens;
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
  int32_t segment_begin;  // of the keys that some row reads
  int32_t segments;
};

// Keys [first, last) of a token.
int32_t FirstKey(const AttentionParams& params, int32_t position) {
  return params.window > 0 ? std::max(0, position - params.window + 1) : 0;
}

std::vector<Unit> CutRows(const AttentionParams& params,
                          const std::vector<AttentionSequence>& sequences, int32_t most) {
  const int kv_heads = static_cast<int>(params.group_begin.size()) - 1;
  std::vector<Unit> units;
  for (int32_t s = 0; s < static_cast<int32_t>(sequences.size()); ++s) {
    for (int32_t h = 0; h < kv_heads; ++h) {
      const int32_t group = params.group_begin[h + 1] - params.group_begin[h];
      const int32_t count = sequences[s].len * group;
      for (int32_t begin = 0; begin < count; begin += most) {
        const int32_t end = std::min(count, begin + most);
        const int32_t first = FirstKey(params, sequences[s].position + begin / group);
        const int32_t last = sequences[s].position + (end - 1) / group;
        const int32_t segment = first / kSegmentTokens;
        units.push_back({s, h, begin, end, segment, last / kSegmentTokens + 1 - segment});
      }
    }
  }
  return units;
}

// A unit, or one segment of it.
struct Task {
  int32_t unit;
  int32_t segment;      // -1: all, straight to the output
  int64_t partial_row;  // of the unit's first row
};

struct Cut {
  std::vector<Unit> units;
  std::vector<Task> tasks;
  int64_t partial_rows = 0;  // one for each row and segment of units that are cut
};

// Tasks of a thread from which it may know the next one: it then takes what another thread might.
constexpr int64_t kManyTasks = 4;

// Units of at most kMaxRows rows. Where there are too few for the threads: cut by segments of the
// keys, or where contexts are short into fewer rows, which reads pages more than once. How it is
// cut changes no bit.
Cut CutBatch(const AttentionParams& params, const std::vector<AttentionSequence>& sequences,
             int threads) {
  Cut cut;
  cut.units = CutRows(params, sequences, kMaxRows);
  int64_t segments = 0;
  for (const Unit& unit : cut.units) segments += unit.segments;
  const auto count = static_cast<int64_t>(cut.units.size());
  const bool few = threads > 1 && count < 2 * threads;
  const bool by_segments = few && segments >= 2 * count;
  if (few && !by_segments) {
    int64_t rows = 0;
    for (const Unit& unit : cut.units) rows += unit.end - unit.begin;
    const int64_t most = std::clamp<int64_t>((rows + threads - 1) / threads, 1, kMaxRows);
    cut.units = CutRows(params, sequences, static_cast<int32_t>(most));
  }
  for (int32_t u = 0; u < static_cast<int32_t>(cut.units.size()); ++u) {
    const Unit& unit = cut.units[u];
    if (!by_segments || unit.segments == 1) {
      cut.tasks.push_back({u, -1, 0});
      continue;
    }
    for (int32_t s = 0; s < unit.segments; ++s) cut.tasks.push_back({u, s, cut.partial_rows});
    cut.partial_rows += int64_t{unit.end - unit.begin} * unit.segments;
  }
  return cut;
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
    task.first[r] = FirstKey(params, position);
    task.last[r] = position + 1;
  }
  return task;
}

// The pages of `unit` from its segment `segment` on: what the thread reads after the task.
void AddNext(const AttentionParams& params, const AttentionSequence& sequence, const Unit& unit,
             int32_t segment, TileTask& task) {
  const int group = params.group_begin[unit.kv_head + 1] - params.group_begin[unit.kv_head];
  const int32_t segment_begin = (unit.segment_begin + std::max(segment, 0)) * kSegmentTokens;
  const int32_t first = FirstKey(params, sequence.position + unit.begin / group);
  const int32_t begin = std::max(first, segment_begin) / kPageTokens;
  const int32_t last = (sequence.position + (unit.end - 1) / group) / kPageTokens;
  task.next_pages = sequence.pages + begin;
  task.next_page_count = last + 1 - begin;
  task.next_pool = params.pool + params.layer_offset + unit.kv_head * params.layout.head_bytes();
}

TileScratch& ThreadScratch() {
  thread_local std::unique_ptr<TileScratch> scratch = std::make_unique<TileScratch>();
  return *scratch;  // NOLINT(clang-analyzer-cplusplus.NewDelete): it lives as long as its thread
}

// Of the calling thread, kept from call to call.
float* Partials(int64_t values) {
  thread_local std::vector<float> partials;
  if (static_cast<int64_t>(partials.size()) < values) partials.resize(values);
  return partials.data();
}

// work(i, next) for every i < count, each on some thread; next: what that thread does afterwards,
// or -1 where it does not know.
template <class Work>
void ForEach(ThreadTeam& team, int64_t count, const Work& work) {
  if (count <= 1 || team.size() == 1) {
    for (int64_t i = count - 1; i >= 0; --i) work(i, i - 1);
    return;
  }
  // Taken from the back: the last rows of a chunk see the most keys. Where there are many, a thread
  // takes its next one before it begins with this one.
  const bool many = count >= kManyTasks * team.size();
  std::atomic<int64_t> left{count};
  team.Run([&](int) {
    const auto take = [&] { return left.fetch_sub(1, std::memory_order_relaxed) - 1; };
    for (int64_t i = take(), next; i >= 0; i = next) {
      next = many ? take() : -1;
      work(i, next);
      if (!many) next = take();
    }
  });
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
  const bool wide = kernel == AttentionKernel::kAvx512;
  const auto run = wide ? RunTileAvx512 : RunTileAvx2;
  const auto fold = wide ? FoldRowAvx512 : FoldRowAvx2;
  const Cut cut = CutBatch(params, sequences, team.size());
  const int64_t stride = params.layout.value_columns() + 32;
  float* partials = Partials(cut.partial_rows * stride);

  const auto work = [&](int64_t i, int64_t next) {
    const Task& part = cut.tasks[i];
    const Unit& unit = cut.units[part.unit];
    TileTask task = MakeTask(params, sequences[unit.sequence], unit);
    if (next >= 0) {
      const Unit& after = cut.units[cut.tasks[next].unit];
      AddNext(params, sequences[after.sequence], after, cut.tasks[next].segment, task);
    }
    if (part.segment >= 0) {
      task.segment = unit.segment_begin + part.segment;
      for (int r = 0; r < task.rows; ++r) {
        task.partial[r] =
            partials + (part.partial_row + int64_t{r} * unit.segments + part.segment) * stride;
      }
    }
    run(task, ThreadScratch());
  };
  ForEach(team, static_cast<int64_t>(cut.tasks.size()), work);
  if (cut.partial_rows == 0) return;

  // Every query has been read: out may be q.
  ForEach(team, static_cast<int64_t>(cut.tasks.size()), [&](int64_t i, int64_t) {
    const Task& part = cut.tasks[i];
    if (part.segment != 0) return;
    const Unit& unit = cut.units[part.unit];
    const TileTask task = MakeTask(params, sequences[unit.sequence], unit);
    for (int r = 0; r < task.rows; ++r) {
      fold(task, partials + (part.partial_row + int64_t{r} * unit.segments) * stride, unit.segments,
           stride, task.out[r]);
    }
  });
}

}  // namespace lapidary
