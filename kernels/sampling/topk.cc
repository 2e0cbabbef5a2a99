#include "kernels/sampling/topk.h"

#include <algorithm>
#include <memory>

#include "kernels/sampling/internal/row_kernels.h"

namespace lapidary {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kMinPart = 16 * kNormChunk;  // logits worth a thread of their own

const RowKernels& Kernels() {
  static const RowKernels& kernels =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
          ? kRowKernelsAvx512
          : kRowKernelsAvx2;
  return kernels;
}

// Candidates above a rising threshold. When the room is full a partial selection keeps the best k
// and raises the threshold; after the first few thousand logits nearly every 64 are rejected by
// compares.
class TopKBuffer {
 public:
  TopKBuffer(int k, int32_t first_id)
      : k_(k),
        first_id_(first_id),
        room_(std::max<int64_t>(1024, 4 * int64_t{k})),
        values_(std::make_unique_for_overwrite<float[]>(room_ + 64)),
        indices_(std::make_unique_for_overwrite<int64_t[]>(room_ + 64)) {}

  void Scan(const float* logits, int64_t n) {
    for (int64_t i = 0; i < n;) {
      // The first selection comes early, to get any threshold.
      const int64_t full = kept_.empty() ? 4 * int64_t{k_} : room_;
      i = Kernels().collect_above(logits, i, n, threshold_, values_.get(), indices_.get(), &count_,
                                  full);
      if (i < n) Shrink();
    }
    Shrink();
  }

  // The best k, best first.
  std::vector<Candidate> Take() {
    std::sort(kept_.begin(), kept_.end(), Better);
    return std::move(kept_);
  }

 private:
  void Shrink() {
    for (int64_t i = 0; i < count_; ++i) {
      kept_.push_back({values_[i], first_id_ + static_cast<int32_t>(indices_[i])});
    }
    count_ = 0;
    if (std::ssize(kept_) < k_) return;
    std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.end(), Better);
    kept_.resize(k_);
    threshold_ = kept_[k_ - 1].logit;  // a later equal logit has a larger id: rejected by >
  }

  const int k_;
  const int32_t first_id_;
  const int64_t room_;
  std::unique_ptr<float[]> values_;
  std::unique_ptr<int64_t[]> indices_;
  int64_t count_ = 0;
  float threshold_ = kMinusInfinity;
  std::vector<Candidate> kept_;
};

ShardNorm ChunkNorm(const float* logits, int64_t n, float inverse_temperature) {
  ShardNorm norm;
  norm.max = Kernels().max(logits, n);
  // A chunk of -infinity and NaN alone: 0 in place of the maximum keeps the NaN and drops the rest.
  const float zero = norm.max == kMinusInfinity ? 0.0f : norm.max;
  int64_t count = 0;
  norm.sum = Kernels().sum_exp(logits, n, kMinusInfinity, zero, inverse_temperature, &count);
  return norm;
}

ShardNorm MergeAll(const std::vector<ShardNorm>& chunks, float inverse_temperature) {
  ShardNorm norm;
  for (const ShardNorm& c : chunks) norm.max = std::max(norm.max, c.max);
  for (const ShardNorm& c : chunks) {
    if (c.max == kMinusInfinity) {
      norm.sum += c.sum;  // 0 or NaN
    } else {
      norm.sum += c.sum * std::exp((double{c.max} - norm.max) * inverse_temperature);
    }
  }
  return norm;
}

int64_t Chunks(int64_t n) { return (n + kNormChunk - 1) / kNormChunk; }

}  // namespace

ShardNorm Merge(const ShardNorm& a, const ShardNorm& b, float inverse_temperature) {
  return MergeAll({a, b}, inverse_temperature);
}

void SelectTopK(const float* logits, int64_t n, int32_t first_id, int k,
                std::vector<Candidate>& out) {
  out.clear();
  if (k <= 0 || n <= 0) return;
  if (k == 1) {
    const int64_t best = Kernels().arg_max(logits, n);
    if (best >= 0) out.push_back({logits[best], first_id + static_cast<int32_t>(best)});
    return;
  }
  TopKBuffer buffer(k, first_id);
  buffer.Scan(logits, n);
  out = buffer.Take();
}

ShardNorm SumExp(const float* logits, int64_t n, float inverse_temperature) {
  std::vector<ShardNorm> chunks;
  for (int64_t i = 0; i < n; i += kNormChunk) {
    chunks.push_back(ChunkNorm(logits + i, std::min(kNormChunk, n - i), inverse_temperature));
  }
  return MergeAll(chunks, inverse_temperature);
}

TailMass MassAtLeast(const float* logits, int64_t n, float threshold, float max,
                     float inverse_temperature) {
  TailMass tail;
  for (int64_t i = 0; i < n; i += kNormChunk) {
    int64_t count = 0;
    tail.mass += Kernels().sum_exp(logits + i, std::min(kNormChunk, n - i), threshold, max,
                                   inverse_temperature, &count);
    tail.count += count;
  }
  return tail;
}

bool CollectAtLeast(const float* logits, int64_t n, int32_t first_id, float threshold,
                    int64_t limit, std::vector<Candidate>& out) {
  out.clear();
  // x >= threshold is x > the next smaller float.
  const float below = std::nextafter(threshold, kMinusInfinity);
  float values[1024 + 64];
  int64_t indices[1024 + 64];
  for (int64_t i = 0; i < n;) {
    int64_t count = 0;
    i = Kernels().collect_above(logits, i, n, below, values, indices, &count, 1024);
    for (int64_t j = 0; j < count; ++j) {
      if (std::ssize(out) == limit) return false;
      out.push_back({values[j], first_id + static_cast<int32_t>(indices[j])});
    }
  }
  return true;
}

void SelectRows(ThreadTeam& team, std::vector<RowSelection>& rows) {
  if (rows.empty()) return;
  // A part is a stretch of one row that begins at a chunk; all rows are cut into equally many.
  int64_t longest = 0;
  for (const RowSelection& row : rows) longest = std::max(longest, row.n);
  const int64_t count = std::ssize(rows);
  const int64_t parts = std::clamp<int64_t>((team.size() + count - 1) / count, 1,
                                            std::max<int64_t>(1, longest / kMinPart));
  std::vector<std::vector<Candidate>> best(count * parts);
  std::vector<std::vector<ShardNorm>> norms(count);
  for (int64_t r = 0; r < count; ++r) {
    if (rows[r].wants_norm) norms[r].resize(Chunks(rows[r].n));
  }
  auto run = [&](int64_t unit) {
    const int64_t r = unit / parts, part = unit % parts;
    const RowSelection& row = rows[r];
    const int64_t begin = Chunks(row.n) * part / parts, end = Chunks(row.n) * (part + 1) / parts;
    const int64_t first = begin * kNormChunk, last = std::min(end * kNormChunk, row.n);
    SelectTopK(row.logits + first, last - first, row.first_id + static_cast<int32_t>(first),
               row.top_k, best[unit]);
    if (!row.wants_norm) return;
    for (int64_t c = begin; c < end; ++c) {
      const int64_t at = c * kNormChunk;
      norms[r][c] =
          ChunkNorm(row.logits + at, std::min(kNormChunk, row.n - at), row.inverse_temperature);
    }
  };
  const int64_t units = count * parts;
  team.Run([&](int t) {
    const int64_t end = ThreadTeam::Begin(units, t + 1, team.size());
    for (int64_t u = ThreadTeam::Begin(units, t, team.size()); u < end; ++u) run(u);
  });
  for (int64_t r = 0; r < count; ++r) {
    RowSelection& row = rows[r];
    row.best = std::move(best[r * parts]);
    for (int64_t p = 1; p < parts; ++p) {
      const std::vector<Candidate>& more = best[r * parts + p];
      row.best.insert(row.best.end(), more.begin(), more.end());
    }
    if (parts > 1) {
      std::sort(row.best.begin(), row.best.end(), Better);
      if (std::ssize(row.best) > row.top_k) row.best.resize(row.top_k);
    }
    row.norm = row.wants_norm ? MergeAll(norms[r], row.inverse_temperature) : ShardNorm();
  }
}

}  // namespace lapidary
