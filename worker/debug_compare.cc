#include "worker/debug_compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/shard_plan.h"
#include "worker/comm/communicator.h"

namespace lapidary {
namespace {

constexpr char kMagic[] = "LAPREC1\n";
constexpr size_t kMagicBytes = sizeof(kMagic) - 1;
constexpr int kLogitsRows = 8;  // of a vocabulary of 262,144: a megabyte each
constexpr int64_t kMaxTokens = 8192;

struct Intermediate {
  std::string name;
  int64_t rows = 0, width = 0;
  std::vector<float> values;
};

struct Recording {
  std::vector<TokenId> ids;
  std::vector<Intermediate> intermediates;
};

// Runs the ids as one step on one rank.
absl::StatusOr<Recording> Run(const Checkpoint& checkpoint, RunnerOptions options,
                              const std::vector<TokenId>& ids) {
  const auto tokens = static_cast<int64_t>(ids.size());
  if (tokens < 1 || tokens > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d token ids; 1 to %d can be compared", tokens, kMaxTokens));
  }
  for (const TokenId id : ids) {
    if (id < 0 || id >= checkpoint.spec().vocab) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "token id %d is outside the vocabulary of %d", id, checkpoint.spec().vocab));
    }
  }
  options.max_step_tokens = static_cast<int>(tokens);
  options.max_logits_rows = kLogitsRows;
  ASSIGN_OR_RETURN(const ShardPlan plan, PlanShards(checkpoint.spec(), 1));
  const std::vector<std::unique_ptr<Communicator>> comms = CreateInprocCommunicators(1);
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelRunner> runner,
                   ModelRunner::Load(checkpoint, plan.ranks[0], options, *comms[0], nullptr));
  const auto pages = static_cast<int32_t>((tokens + kPageTokens - 1) / kPageTokens);
  RETURN_IF_ERROR(runner->AllocateKv({pages, pages}));

  Recording recording;
  recording.ids = ids;
  runner->set_probe([&](std::string_view name, const float* data, int64_t rows, int64_t width) {
    recording.intermediates.push_back(
        {std::string(name), rows, width, std::vector<float>(data, data + rows * width)});
  });
  HostBatch batch;
  std::vector<PageId> table;
  for (int32_t i = 0; i < pages; ++i) table.push_back(PageId{i});
  for (int32_t i = 0; i < static_cast<int32_t>(tokens); ++i) {
    batch.positions.push_back(i);
    batch.logits_index.push_back(i);
  }
  batch.token_ids = ids;
  batch.seq_begin = {0, static_cast<int32_t>(tokens)};
  batch.context_len = {static_cast<int32_t>(tokens)};
  for (auto& tables : batch.page_tables) tables = {&table};
  RETURN_IF_ERROR(runner->Forward(batch));
  RETURN_IF_ERROR(runner->stream().Synchronize());
  return recording;
}

template <class T>
void Put(std::ostream& out, T value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof value);
}

// Reads a recording; every length is checked against the file's size before it is believed.
class RecordingReader {
 public:
  explicit RecordingReader(const std::string& file) : file_(file), in_(file, std::ios::binary) {
    in_.seekg(0, std::ios::end);
    left_ = in_ ? static_cast<int64_t>(in_.tellg()) : -1;
    in_.seekg(0);
  }

  absl::StatusOr<Recording> Read() {
    if (left_ < 0) return absl::NotFoundError(absl::StrCat(file_, ": cannot be read"));
    char magic[kMagicBytes];
    if (!Get(magic, kMagicBytes) || std::memcmp(magic, kMagic, kMagicBytes) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(file_, ": not a recording of `debug record`"));
    }
    Recording recording;
    uint32_t count = 0;
    if (!Get(&count, sizeof count) || !Vector(recording.ids, count)) return Truncated();
    while (true) {
      uint32_t length = 0;
      if (!Get(&length, sizeof length)) return Truncated();
      if (length == 0) return recording;
      Intermediate next;
      std::vector<char> name;
      if (!Vector(name, length) || !Get(&next.rows, sizeof next.rows) ||
          !Get(&next.width, sizeof next.width)) {
        return Truncated();
      }
      next.name.assign(name.begin(), name.end());
      if (next.rows < 0 || next.width < 0 || (next.width > 0 && next.rows > left_ / next.width) ||
          !Vector(next.values, next.rows * next.width)) {
        return Truncated();
      }
      recording.intermediates.push_back(std::move(next));
    }
  }

 private:
  bool Get(void* to, int64_t bytes) {
    if (bytes > left_) return false;
    left_ -= bytes;
    return static_cast<bool>(in_.read(static_cast<char*>(to), bytes));
  }
  template <class T>
  bool Vector(std::vector<T>& to, int64_t count) {
    if (count > left_ / static_cast<int64_t>(sizeof(T))) return false;
    to.resize(count);
    return Get(to.data(), count * static_cast<int64_t>(sizeof(T)));
  }
  absl::Status Truncated() const {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": the recording is truncated"));
  }

  const std::string file_;
  std::ifstream in_;
  int64_t left_ = -1;  // bytes not read yet
};

IntermediateDifference Compare(const Intermediate& recorded, const Intermediate& computed) {
  IntermediateDifference d;
  d.name = recorded.name;
  d.rows = recorded.rows;
  d.width = recorded.width;
  if (recorded.rows != computed.rows || recorded.width != computed.width) {
    d.same_shape = false;
    d.relative_rms = std::numeric_limits<double>::infinity();
    return d;
  }
  double squares = 0, reference = 0;
  bool finite = true;
  for (int64_t i = 0; i < d.rows * d.width; ++i) {
    const double a = recorded.values[i], b = computed.values[i];
    const double difference = std::abs(a - b);
    squares += difference * difference;
    reference += a * a;
    const bool usable = std::isfinite(difference);
    if ((finite && !usable) || (usable && finite && difference > d.max_abs)) {
      d.max_abs = usable ? difference : std::numeric_limits<double>::infinity();
      d.row = i / d.width;
      d.column = i % d.width;
      d.recorded = recorded.values[i];
      d.computed = computed.values[i];
    }
    finite = finite && usable;
  }
  d.relative_rms = !finite          ? std::numeric_limits<double>::infinity()
                   : squares == 0   ? 0
                   : reference == 0 ? std::numeric_limits<double>::infinity()
                                    : std::sqrt(squares / reference);
  return d;
}

}  // namespace

double DefaultTolerance(ComputeType compute) {
  switch (compute) {
    case ComputeType::kFp32:
      return 1e-4;
    case ComputeType::kBf16:
      return 0.05;
    case ComputeType::kInt8:
    case ComputeType::kFp8:
      return 0.15;
  }
  return 0;
}

absl::Status RecordForward(const Checkpoint& checkpoint, RunnerOptions options,
                           const std::vector<TokenId>& ids, const std::string& file) {
  ASSIGN_OR_RETURN(const Recording recording, Run(checkpoint, std::move(options), ids));
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out.write(kMagic, kMagicBytes);
  Put(out, static_cast<uint32_t>(ids.size()));
  for (const TokenId id : ids) Put(out, id);
  for (const Intermediate& i : recording.intermediates) {
    Put(out, static_cast<uint32_t>(i.name.size()));
    out.write(i.name.data(), static_cast<std::streamsize>(i.name.size()));
    Put(out, i.rows);
    Put(out, i.width);
    out.write(reinterpret_cast<const char*>(i.values.data()),
              static_cast<std::streamsize>(i.values.size() * sizeof(float)));
  }
  Put(out, uint32_t{0});
  out.flush();
  if (!out) return absl::UnavailableError(absl::StrCat(file, ": cannot be written"));
  return absl::OkStatus();
}

absl::StatusOr<CompareReport> CompareForward(const Checkpoint& checkpoint, RunnerOptions options,
                                             const std::string& file, double tolerance) {
  ASSIGN_OR_RETURN(const Recording recorded, RecordingReader(file).Read());
  ASSIGN_OR_RETURN(const Recording computed, Run(checkpoint, std::move(options), recorded.ids));
  CompareReport report;
  report.tolerance = tolerance;
  size_t at = 0;  // both are in the order of the graph
  for (const Intermediate& ours : computed.intermediates) {
    size_t found = at;
    while (found < recorded.intermediates.size() &&
           recorded.intermediates[found].name != ours.name) {
      ++found;
    }
    if (found == recorded.intermediates.size()) continue;
    at = found + 1;
    report.intermediates.push_back(Compare(recorded.intermediates[found], ours));
    if (report.first < 0 && report.intermediates.back().relative_rms > tolerance) {
      report.first = static_cast<int>(report.intermediates.size()) - 1;
    }
  }
  if (report.intermediates.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": holds no intermediate that this model has"));
  }
  return report;
}

std::string CompareReport::Format() const {
  constexpr int kBefore = 6, kAfter = 6;
  const int count = static_cast<int>(intermediates.size());
  // Around the first difference; of equal runs every layer's output.
  std::string out = absl::StrFormat("%-32s %14s %12s %12s  %s\n", "intermediate", "shape",
                                    "relative rms", "max |diff|", "recorded -> computed at");
  for (int i = 0; i < count; ++i) {
    const IntermediateDifference& d = intermediates[i];
    const bool near_first = first >= 0 && i >= first - kBefore && i <= first + kAfter;
    const bool in_summary =
        first < 0 && (!absl::StartsWith(d.name, "layers.") || absl::EndsWith(d.name, ".output"));
    if (!near_first && !in_summary) continue;
    absl::StrAppendFormat(&out, "%-32s %14s %12.3g %12.3g  ", d.name,
                          absl::StrFormat("%dx%d", d.rows, d.width), d.relative_rms, d.max_abs);
    if (d.same_shape) {
      absl::StrAppendFormat(&out, "%.6g -> %.6g at [%d, %d]%s\n", d.recorded, d.computed, d.row,
                            d.column, i == first ? "  <- first" : "");
    } else {
      absl::StrAppend(&out, "another shape", i == first ? "  <- first" : "", "\n");
    }
  }
  if (first < 0) {
    absl::StrAppendFormat(&out, "All %d intermediates agree within %g (relative rms).\n", count,
                          tolerance);
  } else {
    absl::StrAppendFormat(&out, "The runs part at %s: relative rms %.3g, tolerance %g.\n",
                          intermediates[first].name, intermediates[first].relative_rms, tolerance);
  }
  return out;
}

}  // namespace lapidary
