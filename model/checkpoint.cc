#include "model/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/config_reader.h"
#include "model/gguf_file.h"
#include "model/gguf_model.h"
#include "model/internal/raw_tensor.h"
#include "model/mapped_file.h"
#include "model/safetensors_file.h"
#include "model/tensor_table.h"

namespace lapidary {
namespace {

using internal::RawTensor;

constexpr int kMaxTableRows = 40;

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrFormat("[%s]", absl::StrJoin(shape, ", "));
}

// Names and shapes that do not fit, as one table.
class MismatchTable {
 public:
  void Add(const std::string& name, const std::string& expected, const std::string& found) {
    rows_.push_back({name, expected, found});
  }
  absl::Status ToStatus(const std::string& path) {
    if (rows_.empty()) return absl::OkStatus();
    std::sort(rows_.begin(), rows_.end());
    std::string text = absl::StrFormat("%s: %d tensor%s not fit the model:", path, rows_.size(),
                                       rows_.size() == 1 ? " does" : "s do");
    const size_t shown = std::min(rows_.size(), size_t{kMaxTableRows});
    Row widths = {"tensor", "expected", "found"};
    std::array<size_t, 2> width = {widths[0].size(), widths[1].size()};
    for (size_t i = 0; i < shown; ++i) {
      for (int c = 0; c < 2; ++c) width[c] = std::max(width[c], rows_[i][c].size());
    }
    const auto append = [&](const Row& row) {
      absl::StrAppendFormat(&text, "\n  %-*s  %-*s  %s", static_cast<int>(width[0]), row[0],
                            static_cast<int>(width[1]), row[1], row[2]);
    };
    append({"tensor", "expected", "found"});
    for (size_t i = 0; i < shown; ++i) append(rows_[i]);
    if (shown < rows_.size()) {
      absl::StrAppendFormat(&text, "\n  ... and %d more", rows_.size() - shown);
    }
    return absl::InvalidArgumentError(text);
  }

 private:
  using Row = std::array<std::string, 3>;  // name, expected, found
  std::vector<Row> rows_;
};

// Hugging Face's name without the prefix that depends on the class that saved it.
std::string StripPrefix(std::string_view name) {
  for (const std::string_view prefix :
       {"model.language_model.", "language_model.model.", "model.", "language_model."}) {
    if (name.substr(0, prefix.size()) == prefix) return std::string(name.substr(prefix.size()));
  }
  return std::string(name);
}

// Towers of other modalities, which the text model does not read.
bool IsOtherModality(std::string_view canonical) {
  for (const std::string_view prefix :
       {"vision_tower.", "vision_embedder.", "embed_vision.", "audio_tower.", "audio_embedder.",
        "embed_audio.", "multi_modal_projector."}) {
    if (canonical.substr(0, prefix.size()) == prefix) return true;
  }
  return false;
}

class FileCheckpoint final : public Checkpoint {
 public:
  explicit FileCheckpoint(std::string path) : path_(std::move(path)) {}

  const ModelSpec& spec() const override { return spec_; }
  const GenerationDefaults& generation_defaults() const override { return generation_; }
  const std::string& path() const override { return path_; }
  const StoredTensor* Find(std::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second];
  }
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }
  const std::vector<std::string>& unused_tensors() const override { return unused_; }
  int64_t unused_bytes() const override { return unused_bytes_; }
  bool quantized() const override { return quantized_; }

  absl::Status OpenGguf() {
    ASSIGN_OR_RETURN(gguf_, GgufFile::Open(path_));
    ASSIGN_OR_RETURN(spec_, SpecFromGguf(*gguf_));
    ASSIGN_OR_RETURN(generation_, GenerationFromGguf(*gguf_));
    std::vector<RawTensor> raw;
    for (const GgufTensor& tensor : gguf_->tensors()) {
      raw.push_back({.name = std::string(tensor.name),
                     .canonical = CanonicalGgufName(tensor.name),
                     .file = gguf_->file().name(),
                     .dtype_name = Info(tensor.dtype).name,
                     .dtype = tensor.dtype,
                     .shape = tensor.shape,
                     .data = tensor.data,
                     .bytes = tensor.bytes});
    }
    std::erase_if(raw, [](const RawTensor& t) { return t.canonical == "rope_freqs.weight"; });
    return Adopt(raw);
  }

  // `weights_folder` empty: the config alone.
  absl::Status OpenConfig(const std::string& config_path, const std::string& weights_folder,
                          bool require_tensors) {
    ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(config_path));
    spec_ = std::move(config.spec);
    generation_ = std::move(config.generation);
    if (weights_folder.empty()) return absl::OkStatus();
    std::vector<RawTensor> raw;
    const absl::Status read = ReadSafetensorsFolder(weights_folder, &files_, &raw);
    if (absl::IsNotFound(read) && raw.empty() && files_.empty() && !require_tensors) {
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(read);
    if (!config.quantization.empty()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: the weights are quantised by '%s' (quantization_config), which is not supported; "
          "quantised weights are read from GGUF files",
          config_path, config.quantization));
    }
    for (RawTensor& tensor : raw) tensor.canonical = StripPrefix(tensor.name);
    return Adopt(raw);
  }

 private:
  // Sorts the stored tensors into used, unused and wrong.
  absl::Status Adopt(const std::vector<RawTensor>& raw) {
    MismatchTable wrong;
    absl::flat_hash_map<std::string_view, const RawTensor*> stored;
    for (const RawTensor& tensor : raw) {
      if (tensor.canonical.empty()) {
        wrong.Add(tensor.name, "not part of the model",
                  tensor.dtype_name + " " + ShapeText(tensor.shape));
      } else if (!stored.emplace(tensor.canonical, &tensor).second) {
        wrong.Add(tensor.name, "once", "twice: also as " + stored[tensor.canonical]->name);
      }
    }
    absl::flat_hash_map<std::string_view, bool> expected_names;
    const std::vector<ExpectedTensor> expected = Expected(stored);
    for (const ExpectedTensor& tensor : expected) {
      expected_names.emplace(tensor.name, true);
      const auto found = stored.find(tensor.name);
      if (found == stored.end()) {
        wrong.Add(tensor.name, ShapeText(tensor.shape), "missing");
      } else {
        Use(tensor, *found->second, wrong);
      }
    }
    for (const auto& [name, tensor] : stored) {
      if (!expected_names.contains(name)) PutAside(*tensor, stored, wrong);
    }
    spec_.weight_block = quantized_ ? 32 : 1;
    std::sort(unused_.begin(), unused_.end());
    for (size_t i = 0; i < tensors_.size(); ++i) {
      index_.emplace(tensors_[i].name, static_cast<int>(i));
    }
    return wrong.ToStatus(path_);
  }

  using Stored = absl::flat_hash_map<std::string_view, const RawTensor*>;

  // ExpectedTensors, with split experts where the file has them.
  std::vector<ExpectedTensor> Expected(const Stored& stored) const {
    std::vector<ExpectedTensor> expected;
    for (ExpectedTensor& tensor : ExpectedTensors(spec_)) {
      if (!absl::EndsWith(tensor.name, ".experts.gate_up_proj") || stored.contains(tensor.name)) {
        expected.push_back(std::move(tensor));
        continue;
      }
      const std::string base = tensor.name.substr(0, tensor.name.size() - 12);  // up to "experts."
      if (!stored.contains(base + "gate_proj") && !stored.contains(base + "up_proj")) {
        expected.push_back(std::move(tensor));
        continue;
      }
      const std::vector<int64_t> half = {tensor.shape[0], tensor.shape[1] / 2, tensor.shape[2]};
      expected.push_back({base + "gate_proj", half, tensor.part});
      expected.push_back({base + "up_proj", half, tensor.part});
    }
    return expected;
  }

  void Use(const ExpectedTensor& expected, const RawTensor& raw, MismatchTable& wrong) {
    std::vector<int64_t> shape = raw.shape;
    if (shape.empty()) shape = {1};
    const std::string found =
        absl::StrFormat("%s %s in %s", raw.dtype_name, ShapeText(raw.shape), raw.file);
    if (shape != expected.shape) {
      wrong.Add(expected.name, ShapeText(expected.shape), found);
      return;
    }
    if (!raw.dtype) {
      wrong.Add(expected.name, ShapeText(expected.shape) + " as F32, F16 or BF16", found);
      return;
    }
    const bool is_matrix = shape.size() > 1;
    quantized_ = quantized_ || (is_matrix && IsQuantized(*raw.dtype));
    tensors_.push_back({.name = expected.name,
                        .file = raw.file,
                        .dtype = *raw.dtype,
                        .shape = std::move(shape),
                        .data = raw.data,
                        .bytes = raw.bytes});
  }

  // A tensor that no layer asks for: known and unused, or wrong.
  void PutAside(const RawTensor& tensor, const Stored& stored, MismatchTable& wrong) {
    bool known = IsDeadTensor(spec_, tensor.canonical) || IsOtherModality(tensor.canonical) ||
                 absl::EndsWith(tensor.canonical, "rotary_emb.inv_freq");
    if (tensor.canonical == "lm_head.weight") {
      const auto found = stored.find("embed_tokens.weight");
      const RawTensor* const embedding = found == stored.end() ? nullptr : found->second;
      known = embedding != nullptr && embedding->dtype_name == tensor.dtype_name &&
              embedding->shape == tensor.shape && embedding->bytes == tensor.bytes &&
              std::memcmp(embedding->data, tensor.data, static_cast<size_t>(tensor.bytes)) == 0;
      if (!known) {
        wrong.Add(tensor.name, "the same bytes as embed_tokens",
                  tensor.dtype_name + " " + ShapeText(tensor.shape) +
                      " with others: an untied head is not supported");
        return;
      }
    }
    if (known) {
      unused_.push_back(tensor.name);
      unused_bytes_ += tensor.bytes;
    } else {
      wrong.Add(
          tensor.name, "not part of the model",
          absl::StrFormat("%s %s in %s", tensor.dtype_name, ShapeText(tensor.shape), tensor.file));
    }
  }

  const std::string path_;
  ModelSpec spec_;
  GenerationDefaults generation_;
  std::unique_ptr<GgufFile> gguf_;                  // the mappings that tensors_ point into:
  std::vector<std::unique_ptr<MappedFile>> files_;  // one of the two
  std::vector<StoredTensor> tensors_;
  absl::flat_hash_map<std::string_view, int> index_;  // of tensors_, by their names
  std::vector<std::string> unused_;
  int64_t unused_bytes_ = 0;
  bool quantized_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path,
                                                             const CheckpointOptions& options) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrFormat("%s: %s", path, std::strerror(errno)));
  }
  auto checkpoint = std::make_unique<FileCheckpoint>(path);
  if (S_ISDIR(info.st_mode)) {
    const std::string config = path + "/config.json";
    if (access(config.c_str(), F_OK) != 0) {
      return absl::NotFoundError(absl::StrFormat(
          "%s has no config.json: expected a folder as on the Hugging Face hub, or the path of a "
          "GGUF file",
          path));
    }
    RETURN_IF_ERROR(checkpoint->OpenConfig(config, path, options.require_tensors));
  } else if (GgufFile::HasMagic(path) || absl::EndsWith(path, ".gguf")) {
    RETURN_IF_ERROR(checkpoint->OpenGguf());
  } else if (absl::EndsWith(path, ".json") && !options.require_tensors) {
    RETURN_IF_ERROR(checkpoint->OpenConfig(path, "", false));
  } else {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s is no checkpoint: expected a folder with config.json and safetensors, or a GGUF file",
        path));
  }
  return checkpoint;
}

}  // namespace lapidary
