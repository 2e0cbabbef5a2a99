#include "tests/model/checkpoint_files.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "model/tensor_table.h"

namespace lapidary {
namespace {

template <class T>
void Append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void AppendString(std::string& out, std::string_view text) {
  Append<uint64_t>(out, text.size());
  out += text;
}

// GGML's number of a type.
uint32_t TypeNumber(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ5_0:
      return 6;
    case DType::kQ8_0:
      return 8;
    case DType::kQ4K:
      return 12;
    case DType::kQ5K:
      return 13;
    case DType::kQ6K:
      return 14;
    case DType::kBf16:
      return 30;
  }
  return 0;
}

}  // namespace

TempFolder::TempFolder() {
  // In memory where possible: the corruption test writes a thousand files.
  const std::filesystem::path shared = "/dev/shm";
  const std::filesystem::path base =
      std::filesystem::exists(shared) ? shared : std::filesystem::temp_directory_path();
  std::string pattern = base / "lapidary_test_XXXXXX";
  const char* const made = mkdtemp(pattern.data());
  LAPIDARY_CHECK(made != nullptr);
  path_ = made;
}
TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}
std::string TempFolder::Write(const std::string& name, std::string_view bytes) const {
  const std::string path = path_ + "/" + name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  LAPIDARY_CHECK(file.good());
  return path;
}

std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

int64_t TensorToStore::bytes() const {
  int64_t elements = 1;
  for (const int64_t dim : shape) elements *= dim;
  return elements / Info(dtype).block_elements * Info(dtype).block_bytes;
}

// Bytes below 0x3c: as any float format they are finite and small.
std::string TensorToStore::Content() const {
  uint32_t state = 12345;
  for (const char c : name) state = state * 31 + static_cast<unsigned char>(c);
  std::string content(static_cast<size_t>(bytes()), '\0');
  for (char& c : content) {
    state = state * 1664525 + 1013904223;
    c = static_cast<char>((state >> 24) % 0x3c);
  }
  return content;
}

std::vector<TensorToStore> TensorsOf(const ModelSpec& spec, const std::string& prefix,
                                     DType dtype) {
  std::vector<TensorToStore> tensors;
  for (const ExpectedTensor& tensor : ExpectedTensors(spec)) {
    tensors.push_back({prefix + tensor.name, tensor.shape, dtype});
  }
  return tensors;
}

std::string SafetensorsBytes(const std::vector<TensorToStore>& tensors) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}", data;
  for (const TensorToStore& tensor : tensors) {
    absl::StrAppendFormat(&header,
                          ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%d,%d]}",
                          tensor.name, Info(tensor.dtype).name, absl::StrJoin(tensor.shape, ","),
                          data.size(), data.size() + tensor.bytes());
    data += tensor.Content();
  }
  header += "}";
  std::string file;
  Append<uint64_t>(file, header.size());
  return file + header + data;
}

GgufBuilder& GgufBuilder::Raw(std::string_view key, uint32_t type, std::string_view bytes) {
  AppendString(metadata_, key);
  Append(metadata_, type);
  metadata_ += bytes;
  ++values_;
  return *this;
}
GgufBuilder& GgufBuilder::String(std::string_view key, std::string_view value) {
  std::string bytes;
  AppendString(bytes, value);
  return Raw(key, 8, bytes);
}
GgufBuilder& GgufBuilder::U32(std::string_view key, uint32_t value) {
  std::string bytes;
  Append(bytes, value);
  return Raw(key, 4, bytes);
}
GgufBuilder& GgufBuilder::F32(std::string_view key, float value) {
  std::string bytes;
  Append(bytes, value);
  return Raw(key, 6, bytes);
}
GgufBuilder& GgufBuilder::Bools(std::string_view key, const std::vector<bool>& values) {
  std::string bytes;
  Append<uint32_t>(bytes, 7);
  Append<uint64_t>(bytes, values.size());
  for (const bool value : values) Append<uint8_t>(bytes, value);
  return Raw(key, 9, bytes);
}
GgufBuilder& GgufBuilder::U32s(std::string_view key, const std::vector<uint32_t>& values) {
  std::string bytes;
  Append<uint32_t>(bytes, 4);
  Append<uint64_t>(bytes, values.size());
  for (const uint32_t value : values) Append(bytes, value);
  return Raw(key, 9, bytes);
}
GgufBuilder& GgufBuilder::Strings(std::string_view key, const std::vector<std::string>& values) {
  std::string bytes;
  Append<uint32_t>(bytes, 8);
  Append<uint64_t>(bytes, values.size());
  for (const std::string& value : values) AppendString(bytes, value);
  return Raw(key, 9, bytes);
}

GgufBuilder& GgufBuilder::Tensor(const TensorToStore& tensor) {
  return Tensor(tensor, TypeNumber(tensor.dtype), tensor.Content());
}
GgufBuilder& GgufBuilder::Tensor(const TensorToStore& tensor, uint32_t type_number,
                                 std::string_view content) {
  Stored stored;
  AppendString(stored.directory_entry, tensor.name);
  Append<uint32_t>(stored.directory_entry, static_cast<uint32_t>(tensor.shape.size()));
  for (auto dim = tensor.shape.rbegin(); dim != tensor.shape.rend(); ++dim) {
    Append<uint64_t>(stored.directory_entry, static_cast<uint64_t>(*dim));
  }
  Append(stored.directory_entry, type_number);
  stored.content = content;
  tensors_.push_back(std::move(stored));
  return *this;
}

std::string GgufBuilder::Build(uint32_t version) const {
  std::string file = "GGUF", data;
  Append(file, version);
  Append<uint64_t>(file, tensors_.size());
  Append(file, values_);
  file += metadata_;
  for (const Stored& tensor : tensors_) {
    data.resize((data.size() + 31) / 32 * 32);
    file += tensor.directory_entry;
    Append<uint64_t>(file, data.size());
    data += tensor.content;
  }
  file.resize((file.size() + 31) / 32 * 32);
  return file + data;
}

namespace {

struct GgufShape {
  int64_t hidden, width, head_dim, q_heads, kv_heads;
};

// The tensors that both architectures have in layer i.
void AddCommonLayer(GgufBuilder& gguf, int i, const GgufShape& s, bool has_v, DType matrix) {
  const auto add = [&](const char* name, std::vector<int64_t> shape, DType dtype) {
    gguf.Tensor({absl::StrFormat("blk.%d.%s.weight", i, name), std::move(shape), dtype});
  };
  add("attn_norm", {s.hidden}, DType::kF32);
  add("attn_q", {s.q_heads * s.head_dim, s.hidden}, matrix);
  add("attn_k", {s.kv_heads * s.head_dim, s.hidden}, matrix);
  // Mixed formats within one product, as llama.cpp's Q4_K_M files have them.
  const DType v = matrix == DType::kQ5_0 ? DType::kQ8_0 : matrix;
  if (has_v) add("attn_v", {s.kv_heads * s.head_dim, s.hidden}, v);
  add("attn_output", {s.hidden, s.q_heads * s.head_dim}, matrix);
  add("attn_q_norm", {s.head_dim}, DType::kF32);
  add("attn_k_norm", {s.head_dim}, DType::kF32);
  add("post_attention_norm", {s.hidden}, DType::kF32);
  add("ffn_norm", {s.hidden}, DType::kF32);
  add("ffn_gate", {s.width, s.hidden}, matrix);
  add("ffn_up", {s.width, s.hidden}, matrix);
  add("ffn_down", {s.hidden, s.width}, matrix);
  add("post_ffw_norm", {s.hidden}, DType::kF32);
}

}  // namespace

std::string TinyGemma3Gguf() {
  GgufBuilder gguf;
  gguf.String("general.architecture", "gemma3")
      .U32("gemma3.context_length", 256)
      .U32("gemma3.embedding_length", 64)
      .U32("gemma3.block_count", 7)
      .U32("gemma3.feed_forward_length", 96)
      .U32("gemma3.attention.head_count", 4)
      .U32("gemma3.attention.head_count_kv", 1)
      .U32("gemma3.attention.key_length", 16)
      .U32("gemma3.attention.value_length", 16)
      .F32("gemma3.attention.layer_norm_rms_epsilon", 1e-6f)
      .U32("gemma3.attention.sliding_window", 9)
      .F32("gemma3.rope.freq_base", 1e6f)
      .Strings("tokenizer.ggml.tokens", {"<pad>", "<eos>", "<bos>", "a"})
      .U32("tokenizer.ggml.eos_token_id", 1)
      .Tensor({"token_embd.weight", {40, 64}, DType::kQ8_0})
      .Tensor({"output_norm.weight", {64}, DType::kF32});
  for (int i = 0; i < 7; ++i) {
    AddCommonLayer(gguf, i, {64, 96, 16, 4, 1}, true, i % 2 == 0 ? DType::kQ5_0 : DType::kBf16);
  }
  return gguf.Build();
}

std::string TinyGemma4Gguf(bool split_experts) {
  constexpr int64_t kHidden = 256, kExperts = 3, kExpertWidth = 32;
  GgufBuilder gguf;
  gguf.String("general.architecture", "gemma4")
      .U32("gemma4.context_length", 256)
      .U32("gemma4.embedding_length", kHidden)
      .U32("gemma4.block_count", 4)
      .U32s("gemma4.feed_forward_length", {256, 256, 256, 256})
      .U32("gemma4.attention.head_count", 8)
      .U32s("gemma4.attention.head_count_kv", {4, 2, 4, 2})
      .U32("gemma4.attention.key_length", 32)
      .U32("gemma4.attention.key_length_swa", 32)
      .F32("gemma4.attention.layer_norm_rms_epsilon", 1e-6f)
      .U32("gemma4.attention.sliding_window", 9)
      .Bools("gemma4.attention.sliding_window_pattern", {true, false, true, false})
      .F32("gemma4.rope.freq_base", 1e6f)
      .F32("gemma4.rope.freq_base_swa", 1e4f)
      .F32("gemma4.final_logit_softcapping", 30.0f)
      .U32("gemma4.expert_count", kExperts)
      .U32("gemma4.expert_used_count", 2)
      .U32("gemma4.expert_feed_forward_length", kExpertWidth)
      .String("tokenizer.chat_template", "{{ messages }}")
      .Strings("tokenizer.ggml.tokens", {"<pad>", "<eos>", "<bos>", "<turn|>"})
      .U32("tokenizer.ggml.eos_token_id", 1)
      .Tensor({"token_embd.weight", {40, kHidden}, DType::kQ6K})
      .Tensor({"output_norm.weight", {kHidden}, DType::kF32});
  std::string divisors;
  for (int i = 0; i < 16; ++i) Append(divisors, i < 4 ? 1.0f : 1e30f);
  gguf.Tensor({"rope_freqs.weight", {16}, DType::kF32}, 0, divisors);
  for (int i = 0; i < 4; ++i) {
    const bool full = i % 2 == 1;
    AddCommonLayer(gguf, i, {kHidden, 256, 32, 8, full ? 2 : 4}, !full,
                   full ? DType::kQ4K : DType::kQ5K);
    const auto add = [&](const char* name, std::vector<int64_t> shape, DType dtype) {
      gguf.Tensor({absl::StrFormat("blk.%d.%s", i, name), std::move(shape), dtype});
    };
    add("layer_output_scale.weight", {1}, DType::kF32);
    add("ffn_gate_inp.weight", {kExperts, kHidden}, DType::kF32);
    add("ffn_gate_inp.scale", {kHidden}, DType::kF32);
    if (split_experts) {
      add("ffn_gate_exps.weight", {kExperts, kExpertWidth, kHidden}, DType::kQ4_0);
      add("ffn_up_exps.weight", {kExperts, kExpertWidth, kHidden}, DType::kQ4_0);
    } else {
      add("ffn_gate_up_exps.weight", {kExperts, 2 * kExpertWidth, kHidden}, DType::kQ4_0);
    }
    add("ffn_down_exps.weight", {kExperts, kHidden, kExpertWidth}, DType::kQ8_0);
    add("ffn_down_exps.scale", {kExperts}, DType::kF32);
    for (const char* norm : {"pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"}) {
      add(absl::StrFormat("%s.weight", norm).c_str(), {kHidden}, DType::kF32);
    }
  }
  return gguf.Build();
}

std::string TinyConfigJson() {
  return R"({
  "model_type": "gemma4_text", "hidden_size": 24, "intermediate_size": 20, "vocab_size": 30,
  "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 12, "global_head_dim": 20, "sliding_window": 7, "max_position_embeddings": 99,
  "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 30,
  "num_kv_shared_layers": 2, "use_double_wide_mlp": true, "final_logit_softcapping": 30.0,
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention",
                  "full_attention", "sliding_attention", "full_attention"]
})";
}

std::string Describe(const ModelSpec& spec) {
  std::string text = absl::StrFormat(
      "family %d hidden %d vocab %d ple %d x %d context %d eps %g scale %.9g cap %g plus_one %d "
      "v_norm %d qk_norm %d scalar %d experts %d top %d width %d bos %d pad %d eos %s\n",
      static_cast<int>(spec.family), spec.hidden, spec.vocab, spec.ple_dim, spec.ple_vocab,
      spec.max_context, spec.norm_eps, spec.attention_scale, spec.final_softcap,
      spec.norm_weight_plus_one, spec.v_norm, spec.qk_norm, spec.layer_scalar, spec.moe.experts,
      spec.moe.top_k, spec.moe.expert_width, spec.bos_id, spec.pad_id,
      absl::StrJoin(spec.eos_ids, ","));
  for (const LayerSpec& layer : spec.layers) {
    absl::StrAppendFormat(
        &text, "%s q %d kv %d d %d window %d theta %g pairs %d factor %g k_eq_v %d of %d mlp %d\n",
        layer.kind == KvFamily::kSliding ? "sliding" : "full", layer.q_heads, layer.kv_heads,
        layer.head_dim, layer.window, layer.rope.theta, layer.rope.rotated_pairs, layer.rope.factor,
        layer.k_eq_v, layer.kv_owner, layer.mlp_width);
  }
  return text;
}

double TouchEverything(const Checkpoint& checkpoint) {
  double sum = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const int64_t row_bytes = tensor.rows() == 0 ? 0 : tensor.bytes / tensor.rows();
    std::vector<float> row(static_cast<size_t>(tensor.inner()));
    const int64_t step = std::max<int64_t>(tensor.rows() - 1, 1);  // the first and the last row
    for (int64_t r = 0; r < tensor.rows(); r += step) {
      Dequantize(tensor.dtype, tensor.data + r * row_bytes, 0, tensor.inner(), row.data());
      for (const float value : row) sum += value;
    }
  }
  return sum;
}

}  // namespace lapidary
