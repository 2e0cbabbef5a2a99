// The container of a GGUF file (versions 2 and 3): typed metadata and the tensor directory.
//
// Nothing here knows a model; model/gguf_model.h and the tokenizer read their keys through it.
// Every count, length and offset is checked against the file before it is followed, so a truncated
// or hostile file is an INVALID_ARGUMENT that names the file, the key or tensor, and the byte.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/base/dtype.h"
#include "model/mapped_file.h"

namespace lapidary {

struct GgufTensor {
  std::string_view name;  // as stored
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first (the file lists the innermost first)
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
};

class GgufFile {
 public:
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // True when the file begins with GGUF's magic number.
  static bool HasMagic(const std::string& path);

  const MappedFile& file() const { return *file_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* FindTensor(std::string_view name) const;

  // Metadata. NOT_FOUND for an absent key, INVALID_ARGUMENT for a value of another type. Views live
  // as long as the GgufFile. Numbers convert where the value fits (any integer type or bool to
  // int64, any number to double); the array getters also take a single number as one element.
  bool Has(std::string_view key) const { return values_.contains(key); }
  absl::StatusOr<int64_t> Int(std::string_view key) const;
  absl::StatusOr<double> Float(std::string_view key) const;
  absl::StatusOr<bool> Bool(std::string_view key) const;
  absl::StatusOr<std::string_view> String(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> Ints(std::string_view key) const;
  absl::StatusOr<std::vector<float>> Floats(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> Strings(std::string_view key) const;
  bool IsArray(std::string_view key) const;
  // Absent: the given value. A value of another type is still an error.
  absl::StatusOr<int64_t> IntOr(std::string_view key, int64_t absent) const;
  absl::StatusOr<double> FloatOr(std::string_view key, double absent) const;

 private:
  // A value, or the elements of an array, where they lie in the file.
  struct Value {
    uint32_t type = 0;  // of the value or of each element
    bool is_array = false;
    int64_t count = 1;
    const uint8_t* data = nullptr;
  };
  class Cursor;

  explicit GgufFile(std::unique_ptr<MappedFile> file) : file_(std::move(file)) {}
  absl::Status Parse();
  absl::Status ReadMetadata(Cursor& cursor, int64_t count);
  absl::Status ReadDirectory(Cursor& cursor, int64_t count);
  absl::StatusOr<const Value*> Lookup(std::string_view key) const;
  absl::Status WrongType(std::string_view key, const Value& value, const char* wanted) const;

  const std::unique_ptr<MappedFile> file_;
  absl::flat_hash_map<std::string_view, Value> values_;
  std::vector<GgufTensor> tensors_;
  absl::flat_hash_map<std::string_view, int> tensor_index_;
};

}  // namespace lapidary
