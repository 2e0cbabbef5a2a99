#include "model/inspect_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "model/model_spec.h"
#include "model/shard_plan.h"
#include "model/tensor_table.h"
#include "model/weight_bytes.h"

namespace lapidary {
namespace {

constexpr int kPrintedRanks[] = {1, 2, 4, 8};

// 30,697,345,340
std::string Grouped(int64_t n) {
  std::string digits = absl::StrFormat("%d", n);
  for (int at = static_cast<int>(digits.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3) {
    digits.insert(digits.begin() + at, ',');
  }
  return digits;
}

std::string Human(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%d B", bytes)
                   : absl::StrFormat("%.2f %s", value, kUnits[unit]);
}

// Columns as wide as their widest cell; the first line is the heading. Cells that begin with a
// digit stand to the right.
class TextTable {
 public:
  void Row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void AppendTo(std::string* text) const {
    std::vector<size_t> widths;
    for (const auto& row : rows_) {
      widths.resize(std::max(widths.size(), row.size()));
      for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
    }
    for (const auto& row : rows_) {
      std::string line;
      for (size_t c = 0; c < row.size(); ++c) {
        const std::string padding(widths[c] - row[c].size(), ' ');
        const bool right = c > 0 && RightAligned(c);
        absl::StrAppend(&line, "  ", right ? padding : row[c], right ? row[c] : padding);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      absl::StrAppendFormat(text, "%s\n", line);
    }
  }

 private:
  bool RightAligned(size_t column) const {
    for (size_t r = 1; r < rows_.size(); ++r) {
      if (column < rows_[r].size() && !rows_[r][column].empty() &&
          (rows_[r][column][0] < '0' || rows_[r][column][0] > '9')) {
        return false;
      }
    }
    return true;
  }
  std::vector<std::vector<std::string>> rows_;
};

void AppendModel(const ModelSpec& spec, std::string* text) {
  absl::StrAppendFormat(text, "  hidden %d, vocabulary %d, context %d tokens, %d layers",
                        spec.hidden, spec.vocab, spec.max_context, spec.layers.size());
  if (spec.ple_dim > 0) {
    absl::StrAppendFormat(text, ", per-layer embeddings of %d (%d rows)", spec.ple_dim,
                          spec.ple_vocab);
  }
  if (spec.moe.experts > 0) {
    absl::StrAppendFormat(text, "\n  %d experts of width %d beside each MLP, %d per token",
                          spec.moe.experts, spec.moe.expert_width, spec.moe.top_k);
  }
  absl::StrAppendFormat(text, "\n  norm epsilon %g, weight %s; attention scale %g; ", spec.norm_eps,
                        spec.norm_weight_plus_one ? "1 + w" : "w", spec.attention_scale);
  *text += spec.final_softcap > 0 ? absl::StrFormat("logits capped at %g", spec.final_softcap)
                                  : std::string("logits not capped");
  absl::StrAppendFormat(text, "\n  tokens: BOS %d, end %s\n", spec.bos_id,
                        absl::StrJoin(spec.eos_ids, ", "));
}

// A line of the layer table without its layer numbers: equal neighbours share one.
std::vector<std::string> LayerCells(const ModelSpec& spec, int index) {
  const LayerSpec& layer = spec.layers[index];
  const bool sliding = layer.kind == KvFamily::kSliding;
  std::string rope = absl::StrFormat("theta %g, %d of %d", layer.rope.theta,
                                     2 * layer.rope.rotated_pairs, layer.head_dim);
  if (layer.rope.factor != 1.0) rope += absl::StrFormat(", / %g", layer.rope.factor);
  const char* const own = layer.k_eq_v ? "own, K = V" : "own";
  std::string kv =
      spec.shares_kv(index) ? absl::StrFormat("of layer %d", layer.kv_owner) : std::string(own);
  return {sliding ? "sliding" : "full",
          absl::StrFormat("%d", layer.q_heads),
          absl::StrFormat("%d", layer.kv_heads),
          absl::StrFormat("%d", layer.head_dim),
          sliding ? absl::StrFormat("%d", layer.window) : "-",
          std::move(rope),
          std::move(kv),
          absl::StrFormat("%d", layer.mlp_width)};
}

void AppendLayers(const ModelSpec& spec, std::string* text) {
  *text += "\nLayers\n";
  TextTable table;
  table.Row(
      {"layers", "kind", "q heads", "kv heads", "head", "window", "RoPE (rotated)", "KV", "MLP"});
  const int layers = static_cast<int>(spec.layers.size());
  for (int first = 0; first < layers;) {
    std::vector<std::string> cells = LayerCells(spec, first);
    int last = first;
    while (last + 1 < layers && LayerCells(spec, last + 1) == cells) ++last;
    cells.insert(cells.begin(), first == last ? absl::StrFormat("%d", first)
                                              : absl::StrFormat("%d-%d", first, last));
    table.Row(std::move(cells));
    first = last + 1;
  }
  table.AppendTo(text);
}

void AppendParameters(const ModelSpec& spec, std::string* text) {
  const std::vector<ExpectedTensor> tensors = ExpectedTensors(spec);
  std::map<TensorPart, int64_t> parts;
  for (const ExpectedTensor& tensor : tensors) parts[tensor.part] += tensor.elements();
  absl::StrAppendFormat(text, "\nParameters (%d tensors)\n", tensors.size());
  TextTable table;
  table.Row({"part", "parameters"});
  for (const auto& [part, count] : parts) table.Row({Name(part), Grouped(count)});
  table.Row({"total", Grouped(LiveParameters(spec))});
  table.Row({spec.ple_dim > 0 ? "used per token (no PLE table)" : "used per token",
             Grouped(ActiveParameters(spec))});
  if (const int64_t dead = DeadParameters(spec); dead > 0) {
    table.Row({"K/V of sharing layers, if stored (not read)", Grouped(dead)});
  }
  table.AppendTo(text);
}

void AppendStored(const Checkpoint& checkpoint, std::string* text) {
  if (checkpoint.tensors().empty()) return;
  struct Sum {
    int64_t tensors = 0, bytes = 0;
  };
  std::map<DType, Sum> by_type;
  Sum all;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    for (Sum* sum : {&by_type[tensor.dtype], &all}) {
      ++sum->tensors;
      sum->bytes += tensor.bytes;
    }
  }
  *text += "\nStored\n";
  TextTable table;
  table.Row({"type", "tensors", "bytes", ""});
  const auto row = [&](const std::string& name, const Sum& sum) {
    table.Row({name, Grouped(sum.tensors), Grouped(sum.bytes), Human(sum.bytes)});
  };
  for (const auto& [type, sum] : by_type) row(Info(type).name, sum);
  row("total", all);
  table.AppendTo(text);

  // By the part of the name before the second dot ("model.vision_tower"), or as what they are.
  std::map<std::string, int> unused;
  for (const std::string& name : checkpoint.unused_tensors()) {
    const bool dead = absl::StrContains(name, ".self_attn.") || absl::StrContains(name, ".attn_");
    const bool text = !absl::StrContains(name, "tower") && dead;
    ++unused[text ? std::string("K and V of layers that share another's")
                  : name.substr(0, name.find('.', name.find('.') + 1))];
  }
  if (unused.empty()) return;
  absl::StrAppendFormat(text, "Not used yet: %d tensors, %s:\n", checkpoint.unused_tensors().size(),
                        Human(checkpoint.unused_bytes()));
  for (const auto& [prefix, count] : unused) {
    absl::StrAppendFormat(text, "  %s: %d\n", prefix, count);
  }
}

// Bytes of one sequence; sliding layers keep no more than their window.
int64_t SequenceKvBytes(const ModelSpec& spec, const RankShard& whole, const KvStorage& storage,
                        int64_t tokens) {
  int64_t window = 0;
  for (const LayerSpec& layer : spec.layers) window = std::max<int64_t>(window, layer.window);
  const int64_t kept = window > 0 ? std::min(window, tokens) : tokens;
  return kept * KvBytesPerToken(spec, whole, KvFamily::kSliding, storage) +
         tokens * KvBytesPerToken(spec, whole, KvFamily::kGlobal, storage);
}

void AppendKv(const ModelSpec& spec, const RankShard& whole, std::string* text) {
  absl::StrAppendFormat(
      text,
      "\nKV cache by --kv-format and --kv-type: bytes per token in %d sliding and "
      "%d full layers, and of a sequence\n",
      spec.owning_layers(KvFamily::kSliding), spec.owning_layers(KvFamily::kGlobal));
  bool once = false;  // some layer's keys are its values
  for (const LayerSpec& layer : spec.layers) once = once || layer.k_eq_v;
  std::vector<int64_t> lengths;
  for (const int64_t tokens : {int64_t{8192}, int64_t{32768}, spec.max_context}) {
    if (tokens <= spec.max_context && (lengths.empty() || lengths.back() < tokens)) {
      lengths.push_back(tokens);
    }
  }
  struct Named {
    const char* name;
    KvStorage storage;
  };
  std::vector<Named> rows = {{"bf16", {KvFormat::kSplit, KvType::kBf16}},
                             {"int8", {KvFormat::kSplit, KvType::kInt8}}};
  if (once) {
    rows = {{"folded, bf16 (auto)", {KvFormat::kFolded, KvType::kBf16}},
            {"single, bf16", {KvFormat::kSingle, KvType::kBf16}},
            {"split, bf16", {KvFormat::kSplit, KvType::kBf16}},
            {"folded, int8", {KvFormat::kFolded, KvType::kInt8}},
            {"single, int8", {KvFormat::kSingle, KvType::kInt8}},
            {"split, int8", {KvFormat::kSplit, KvType::kInt8}}};
  }
  TextTable table;
  std::vector<std::string> heading = {"pages", "sliding", "full"};
  for (const int64_t tokens : lengths) heading.push_back(Grouped(tokens) + " tokens");
  table.Row(std::move(heading));
  for (const Named& row : rows) {
    std::vector<std::string> cells = {
        row.name, Grouped(KvBytesPerToken(spec, whole, KvFamily::kSliding, row.storage)),
        Grouped(KvBytesPerToken(spec, whole, KvFamily::kGlobal, row.storage))};
    for (const int64_t tokens : lengths) {
      cells.push_back(Human(SequenceKvBytes(spec, whole, row.storage, tokens)));
    }
    table.Row(std::move(cells));
  }
  table.AppendTo(text);
}

// A size that may differ between the layers of a family: "1", "1-2", or "-" without such layers.
template <class SizeOf>
std::string OfFamily(const ModelSpec& spec, const RankShard& rank, KvFamily family,
                     const SizeOf& size_of) {
  int64_t low = -1, high = -1;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    if (spec.layers[i].kind != family) continue;
    const int64_t size = size_of(rank.layers[i]);
    low = low < 0 ? size : std::min(low, size);
    high = std::max(high, size);
  }
  if (high < 0) return "-";
  return low == high ? absl::StrFormat("%d", low) : absl::StrFormat("%d-%d", low, high);
}
template <class SizeOf>
std::string OfBothFamilies(const ModelSpec& spec, const RankShard& rank, const SizeOf& size_of) {
  return absl::StrFormat("%s/%s", OfFamily(spec, rank, KvFamily::kSliding, size_of),
                         OfFamily(spec, rank, KvFamily::kGlobal, size_of));
}

void AppendRanks(const ModelSpec& spec, const Checkpoint& checkpoint, std::string* text) {
  const bool stored = !checkpoint.tensors().empty();
  *text +=
      "\nPer rank of a tensor-parallel group: weight bytes as the CPU packs them, by --compute;\n"
      "heads, widths and KV bytes (as by default, in bf16) are those of a sliding/full layer or of "
      "all "
      "such layers\n";
  TextTable table;
  std::vector<std::string> heading = {"TP", "rank", "q heads", "kv heads", "MLP"};
  if (spec.moe.experts > 0) heading.push_back("experts");
  for (const char* name : {"vocabulary", "KV bytes/token", "fp32", "bf16"}) heading.push_back(name);
  if (checkpoint.quantized()) heading.push_back("int8");
  heading.push_back("");
  table.Row(std::move(heading));
  std::string refused;
  for (const int size : kPrintedRanks) {
    const absl::StatusOr<ShardPlan> plan = PlanShards(spec, size);
    if (!plan.ok()) {
      absl::StrAppendFormat(&refused, "  TP %d: not possible: %s\n", size,
                            std::string(plan.status().message()));
      continue;
    }
    for (const RankShard& rank : plan->ranks) {
      const auto bytes = [&](ComputeType compute) {
        return PackedWeightBytes(spec, rank, stored ? &checkpoint : nullptr, compute);
      };
      const auto kv_bytes = [&](KvFamily family) {
        return Grouped(KvBytesPerToken(spec, rank, family, {}));
      };
      std::vector<std::string> row = {
          absl::StrFormat("%d", size), absl::StrFormat("%d", rank.rank.value),
          OfBothFamilies(spec, rank, [](const LayerShard& l) { return l.q_heads.size(); }),
          OfBothFamilies(spec, rank, [](const LayerShard& l) { return l.kv_heads.size(); }),
          OfBothFamilies(spec, rank, [](const LayerShard& l) { return l.mlp.size(); })};
      if (spec.moe.experts > 0) {
        row.push_back(absl::StrFormat("%d", rank.layers[0].experts.size()));
      }
      row.push_back(absl::StrFormat("%d", rank.vocab.size()));
      row.push_back(
          absl::StrFormat("%s/%s", kv_bytes(KvFamily::kSliding), kv_bytes(KvFamily::kGlobal)));
      row.push_back(Grouped(bytes(ComputeType::kFp32)));
      row.push_back(Grouped(bytes(ComputeType::kBf16)));
      ComputeType fastest = ComputeType::kBf16;
      if (checkpoint.quantized()) {
        fastest = ComputeType::kInt8;
        row.push_back(Grouped(bytes(fastest)));
      }
      row.push_back(Human(bytes(fastest)));
      table.Row(std::move(row));
    }
  }
  table.AppendTo(text);
  *text += refused;
  if (spec.ple_dim > 0) {
    *text += "  The PLE table is not counted: it stays mapped, a token reads one row.\n";
  }
}

}  // namespace

absl::StatusOr<std::string> InspectReport(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                   Checkpoint::Open(path, {.require_tensors = false}));
  const ModelSpec& spec = checkpoint->spec();
  ASSIGN_OR_RETURN(const ShardPlan whole, PlanShards(spec, 1));
  std::string text = absl::StrFormat("%s (%s)\n", spec.display_name, spec.model_type);
  AppendModel(spec, &text);
  AppendLayers(spec, &text);
  AppendParameters(spec, &text);
  AppendStored(*checkpoint, &text);
  AppendKv(spec, whole.ranks[0], &text);
  AppendRanks(spec, *checkpoint, &text);
  return text;
}

}  // namespace lapidary
