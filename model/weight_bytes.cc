#include "model/weight_bytes.h"

#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"

namespace lapidary {
namespace {

constexpr int64_t kPanel = 32;  // output columns
constexpr int64_t kBlock = 32;  // inputs

int64_t CellBytes(ComputeType compute, DType stored) {
  if (compute == ComputeType::kFp32) return 4096;
  if (compute == ComputeType::kBf16) return 2048;
  switch (stored) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBf16:
      return 2048;
    case DType::kQ8_0:
      return 1088;
    case DType::kQ6K:
      return 1152;
    case DType::kQ4_0:
      return 576;
    case DType::kQ4K:
      return 640;
    case DType::kQ5_0:
      return 704;
    case DType::kQ5K:
      return 768;
  }
  return 0;
}

// Rows of a tensor that take part in a matrix.
struct Part {
  std::string_view name;  // behind the layer's prefix
  int64_t rows;
  bool whole_blocks = true;
};

class Counter {
 public:
  Counter(const Checkpoint* checkpoint, ComputeType compute)
      : checkpoint_(checkpoint), compute_(compute) {}

  int64_t total() const { return total_; }
  void set_layer(int index) { prefix_ = absl::StrCat("layers.", index, "."); }
  void leave_layers() { prefix_.clear(); }

  void Matrix(const std::vector<Part>& parts, int64_t inputs, int64_t copies = 1) {
    int64_t bytes = 0, run_rows = 0;
    int64_t run_cell = 0;  // of the parts since the format last changed
    const auto end_run = [&] {
      bytes += (run_rows + kPanel - 1) / kPanel * ((inputs + kBlock - 1) / kBlock) * run_cell;
      run_rows = 0;
    };
    for (const Part& part : parts) {
      const int64_t cell =
          CellBytes(compute_, part.whole_blocks ? StoredAs(part.name) : DType::kBf16);
      if (cell != run_cell) end_run();
      run_cell = cell;
      run_rows += part.rows;
    }
    end_run();
    total_ += bytes * copies;
  }
  void Fp32Matrix(int64_t rows, int64_t inputs) {
    total_ += (rows + kPanel - 1) / kPanel * ((inputs + kBlock - 1) / kBlock) * 4096;
  }
  void Vector(int64_t elements) { total_ += 4 * elements; }

  bool SplitExperts() const {
    return checkpoint_ != nullptr && Find("experts.gate_proj") != nullptr;
  }

 private:
  const StoredTensor* Find(std::string_view name) const {
    std::string full = prefix_;
    full += name;
    return checkpoint_->Find(full);
  }
  DType StoredAs(std::string_view name) const {
    const StoredTensor* const tensor = checkpoint_ == nullptr ? nullptr : Find(name);
    return tensor == nullptr ? DType::kBf16 : tensor->dtype;
  }

  const Checkpoint* const checkpoint_;
  const ComputeType compute_;
  std::string prefix_;
  int64_t total_ = 0;
};

void CountAttention(const ModelSpec& spec, int index, const LayerShard& shard, Counter& counter) {
  const LayerSpec& layer = spec.layers[index];
  const int64_t q = shard.q_heads.size() * layer.head_dim;
  const int64_t kv = shard.kv_heads.size() * layer.head_dim;
  std::vector<Part> qkv = {{"self_attn.q_proj.weight", q}};
  if (!spec.shares_kv(index)) {
    qkv.push_back({"self_attn.k_proj.weight", kv});
    if (!layer.k_eq_v) qkv.push_back({"self_attn.v_proj.weight", kv});
    counter.Vector(layer.head_dim);  // k_norm
  }
  counter.Matrix(qkv, spec.hidden);
  const int64_t begin = shard.q_heads.begin * layer.head_dim;
  const int64_t end = shard.q_heads.end * layer.head_dim;
  const bool whole =
      begin % kBlock == 0 && (end % kBlock == 0 || end == int64_t{layer.q_heads} * layer.head_dim);
  counter.Matrix({{"self_attn.o_proj.weight", spec.hidden, whole}}, q);
  counter.Vector(layer.head_dim);  // q_norm
}

void CountExperts(const ModelSpec& spec, const LayerShard& shard, Counter& counter) {
  const int64_t m = spec.hidden, width = spec.moe.expert_width, own = shard.experts.size();
  counter.Fp32Matrix(spec.moe.experts, m);  // router.proj
  counter.Vector(m + spec.moe.experts);     // router.scale, per_expert_scale
  counter.Vector(3 * m);                    // the three norms around the experts
  if (counter.SplitExperts()) {
    counter.Matrix({{"experts.gate_proj", width}, {"experts.up_proj", width}}, m, own);
  } else {
    counter.Matrix({{"experts.gate_up_proj", 2 * width}}, m, own);
  }
  counter.Matrix({{"experts.down_proj", m}}, width, own);
}

}  // namespace

int64_t PackedWeightBytes(const ModelSpec& spec, const RankShard& shard,
                          const Checkpoint* checkpoint, ComputeType compute) {
  Counter counter(checkpoint, compute);
  const int64_t m = spec.hidden;
  counter.Matrix({{"embed_tokens.weight", shard.vocab.size()}}, m);
  counter.Vector(m);  // the final norm
  if (spec.ple_dim > 0) {
    const int64_t width = static_cast<int64_t>(spec.layers.size()) * spec.ple_dim;
    counter.Matrix({{"per_layer_model_projection.weight", width}}, m);
    counter.Vector(spec.ple_dim);
  }
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerShard& layer = shard.layers[i];
    counter.set_layer(static_cast<int>(i));
    CountAttention(spec, static_cast<int>(i), layer, counter);
    counter.Vector(4 * m);  // the norms before and after attention and MLP
    counter.Matrix(
        {{"mlp.gate_proj.weight", layer.mlp.size()}, {"mlp.up_proj.weight", layer.mlp.size()}}, m);
    counter.Matrix({{"mlp.down_proj.weight", m}}, layer.mlp.size());
    if (spec.moe.experts > 0) CountExperts(spec, layer, counter);
    if (spec.ple_dim > 0) {
      counter.Matrix({{"per_layer_input_gate.weight", spec.ple_dim}}, m);
      counter.Matrix({{"per_layer_projection.weight", m}}, spec.ple_dim);
      counter.Vector(m);
    }
  }
  return counter.total();
}

int64_t KvBytesPerToken(const ModelSpec& spec, const RankShard& shard, KvFamily family,
                        const KvStorage& storage) {
  const int64_t element = storage.type == KvType::kFp32 ? 4 : storage.type == KvType::kBf16 ? 2 : 1;
  std::vector<bool> shared(spec.layers.size(), false);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    if (spec.shares_kv(static_cast<int>(i))) shared[spec.layers[i].kv_owner] = true;
  }
  int64_t bytes = 0;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    if (layer.kind != family || spec.shares_kv(static_cast<int>(i))) continue;
    const bool once = layer.k_eq_v && spec.v_norm && family == KvFamily::kGlobal && !shared[i];
    const KvFormat format = once ? storage.format : KvFormat::kSplit;
    int64_t keys = 0;
    if (format == KvFormat::kSplit) keys = layer.head_dim;
    if (format == KvFormat::kFolded) keys = 2 * layer.rope.rotated_pairs;
    int64_t head = (keys + layer.head_dim) * element;
    if (storage.type == KvType::kInt8) head += keys > 0 ? 8 : 4;  // a scale for each
    bytes += shard.layers[i].kv_heads.size() * head;
  }
  return bytes;
}

}  // namespace lapidary
