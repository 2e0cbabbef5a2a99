#include "model/gguf_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

enum GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};
constexpr uint32_t kTypes = 13;
constexpr const char* kTypeNames[kTypes] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                            "int32",  "float32", "bool",   "string", "array",
                                            "uint64", "int64",   "float64"};
// Bytes of one element; 0 for strings and arrays, whose length is stored.
constexpr int kTypeBytes[kTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

constexpr int kMaxDims = 4;
constexpr int64_t kMaxElements = int64_t{1} << 50;  // of one tensor: no product below overflows

// GGML's numbers for the tensor types we read, and names for those we only have to refuse.
std::optional<DType> ToDType(uint32_t ggml_type) {
  switch (ggml_type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 6:
      return DType::kQ5_0;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4K;
    case 13:
      return DType::kQ5K;
    case 14:
      return DType::kQ6K;
    case 30:
      return DType::kBf16;
  }
  return std::nullopt;
}

std::string GgmlTypeName(uint32_t ggml_type) {
  static constexpr const char* kNames[] = {
      "F32",      "F16",      "Q4_0",    "Q4_1",  "Q4_2",   "Q4_3",  "Q5_0",  "Q5_1",
      "Q8_0",     "Q8_1",     "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
      "IQ2_XXS",  "IQ2_XS",   "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
      "I8",       "I16",      "I32",     "I64",   "F64",    "IQ1_M", "BF16",  "Q4_0_4_4",
      "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",   "TQ2_0"};
  if (ggml_type < std::size(kNames)) return kNames[ggml_type];
  if (ggml_type == 39) return "MXFP4";
  if (ggml_type == 40) return "NVFP4";
  return absl::StrFormat("number %d", ggml_type);
}

// Names come from the file: a message shows them shortened and without control characters.
std::string Printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 80)) out += c >= 32 && c < 127 ? c : '?';
  if (text.size() > 80) out += "...";
  return out;
}

template <class T>
T Load(const uint8_t* p) {  // the file promises no alignment
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Null when the value does not fit int64 or is no integer.
std::optional<int64_t> LoadInt(uint32_t type, const uint8_t* p) {
  switch (type) {
    case kUint8:
    case kBool:
      return Load<uint8_t>(p);
    case kInt8:
      return Load<int8_t>(p);
    case kUint16:
      return Load<uint16_t>(p);
    case kInt16:
      return Load<int16_t>(p);
    case kUint32:
      return Load<uint32_t>(p);
    case kInt32:
      return Load<int32_t>(p);
    case kInt64:
      return Load<int64_t>(p);
    case kUint64: {
      const uint64_t value = Load<uint64_t>(p);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
  }
  return std::nullopt;
}

std::optional<double> LoadFloat(uint32_t type, const uint8_t* p) {
  if (type == kFloat32) return Load<float>(p);
  if (type == kFloat64) return Load<double>(p);
  if (type == kBool) return std::nullopt;
  if (const std::optional<int64_t> value = LoadInt(type, p)) return static_cast<double>(*value);
  return std::nullopt;
}

}  // namespace

// Walks the file front to back; no read passes the end.
class GgufFile::Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}

  int64_t position() const { return position_; }
  int64_t left() const { return file_.size() - position_; }
  const uint8_t* here() const { return file_.data() + position_; }

  absl::Status Skip(int64_t bytes, const char* what) {
    if (bytes < 0 || bytes > left()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s is truncated or damaged: %s at byte %d needs %d bytes, %d are left",
                          file_.name(), what, position_, bytes, left()));
    }
    position_ += bytes;
    return absl::OkStatus();
  }
  template <class T>
  absl::StatusOr<T> Read(const char* what) {
    const uint8_t* const p = here();
    RETURN_IF_ERROR(Skip(sizeof(T), what));
    return Load<T>(p);
  }
  // A count that must leave room for `min_bytes` each: bounds every loop and allocation below.
  absl::StatusOr<int64_t> ReadCount(int64_t min_bytes, const char* what) {
    ASSIGN_OR_RETURN(const uint64_t count, Read<uint64_t>(what));
    if (count > static_cast<uint64_t>(left() / min_bytes)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s is truncated or damaged: %s is %d, and %d bytes are left",
                          file_.name(), what, count, left()));
    }
    return static_cast<int64_t>(count);
  }
  absl::StatusOr<std::string_view> ReadString(const char* what) {
    ASSIGN_OR_RETURN(const int64_t length, ReadCount(1, what));
    const char* const text = reinterpret_cast<const char*>(here());
    RETURN_IF_ERROR(Skip(length, what));
    return std::string_view(text, static_cast<size_t>(length));
  }

 private:
  const MappedFile& file_;
  int64_t position_ = 0;
};

bool GgufFile::HasMagic(const std::string& path) {
  char magic[4] = {};
  std::ifstream(path, std::ios::binary).read(magic, sizeof magic);
  return std::memcmp(magic, "GGUF", 4) == 0;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  std::unique_ptr<GgufFile> gguf(new GgufFile(std::move(file)));
  RETURN_IF_ERROR(gguf->Parse());
  return gguf;
}

absl::Status GgufFile::Parse() {
  Cursor cursor(*file_);
  ASSIGN_OR_RETURN(const uint32_t magic, cursor.Read<uint32_t>("the magic number"));
  if (magic != 0x46554747u) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is no GGUF file: it does not begin with \"GGUF\"", file_->name()));
  }
  ASSIGN_OR_RETURN(const uint32_t version, cursor.Read<uint32_t>("the version"));
  if (version != 2 && version != 3) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has GGUF version %d%s; versions 2 and 3 are supported", file_->name(),
                        version, (version & 0xffff) == 0 ? " (a big-endian file?)" : ""));
  }
  // A directory entry has at least a name length, a dimension count, a type and an offset; a
  // metadata entry a key length, a type and one byte.
  ASSIGN_OR_RETURN(const int64_t tensors, cursor.ReadCount(24, "the tensor count"));
  ASSIGN_OR_RETURN(const int64_t values, cursor.ReadCount(13, "the metadata count"));
  RETURN_IF_ERROR(ReadMetadata(cursor, values));
  return ReadDirectory(cursor, tensors);
}

absl::Status GgufFile::ReadMetadata(Cursor& cursor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const std::string_view key, cursor.ReadString("a metadata key"));
    ASSIGN_OR_RETURN(uint32_t type, cursor.Read<uint32_t>("a metadata type"));
    Value value;
    if (type == kArray) {
      value.is_array = true;
      ASSIGN_OR_RETURN(type, cursor.Read<uint32_t>("an array's type"));
    }
    if (type >= kTypes || type == kArray) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: metadata '%s' has %s", file_->name(), Printable(key),
                          type == kArray ? "nested arrays, which no known key uses"
                                         : absl::StrFormat("the unknown type %d", type)));
    }
    value.type = type;
    const int64_t element_bytes = type == kString ? 8 : kTypeBytes[type];
    if (value.is_array) {
      ASSIGN_OR_RETURN(value.count, cursor.ReadCount(element_bytes, "an array's length"));
    }
    value.data = cursor.here();
    if (type == kString) {
      for (int64_t j = 0; j < value.count; ++j) {
        RETURN_IF_ERROR(cursor.ReadString("a metadata string").status());
      }
    } else {
      RETURN_IF_ERROR(cursor.Skip(value.count * element_bytes, "a metadata value"));
    }
    if (!values_.emplace(key, value).second) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: metadata '%s' is there twice", file_->name(), Printable(key)));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufFile::ReadDirectory(Cursor& cursor, int64_t count) {
  ASSIGN_OR_RETURN(const int64_t alignment, IntOr("general.alignment", 32));
  if (alignment < 1 || alignment > (1 << 20) || !std::has_single_bit(uint64_t(alignment))) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: general.alignment is %d, not a power of two up to 2^20", file_->name(), alignment));
  }
  std::vector<uint64_t> offsets;
  for (int64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    ASSIGN_OR_RETURN(tensor.name, cursor.ReadString("a tensor name"));
    const auto bad = [&](const std::string& what) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: tensor '%s' %s", file_->name(), Printable(tensor.name), what));
    };
    ASSIGN_OR_RETURN(const uint32_t dims, cursor.Read<uint32_t>("a dimension count"));
    if (dims > kMaxDims) return bad(absl::StrFormat("has %d dimensions, at most 4 exist", dims));
    int64_t elements = 1;
    for (uint32_t d = 0; d < dims; ++d) {
      ASSIGN_OR_RETURN(const uint64_t dim, cursor.Read<uint64_t>("a dimension"));
      if (dim < 1 || dim > static_cast<uint64_t>(kMaxElements / elements)) {
        return bad(absl::StrFormat("has a dimension of %d", dim));
      }
      elements *= static_cast<int64_t>(dim);
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(dim));
    }
    if (tensor.shape.empty()) tensor.shape = {1};
    ASSIGN_OR_RETURN(const uint32_t type, cursor.Read<uint32_t>("a tensor type"));
    const std::optional<DType> dtype = ToDType(type);
    if (!dtype) {
      return bad(
          absl::StrFormat("is stored as %s; supported are F32, F16, BF16, Q8_0, Q4_0, Q5_0, "
                          "Q4_K, Q5_K and Q6_K",
                          GgmlTypeName(type)));
    }
    tensor.dtype = *dtype;
    const DTypeInfo& info = Info(*dtype);
    if (tensor.shape.back() % info.block_elements != 0) {
      return bad(absl::StrFormat("has rows of %d elements, not a multiple of the %d in a %s block",
                                 tensor.shape.back(), info.block_elements, info.name));
    }
    tensor.bytes = elements / info.block_elements * info.block_bytes;
    ASSIGN_OR_RETURN(const uint64_t offset, cursor.Read<uint64_t>("a tensor offset"));
    if (offset % static_cast<uint64_t>(alignment) != 0) {
      return bad(absl::StrFormat("begins at %d, not a multiple of %d", offset, alignment));
    }
    offsets.push_back(offset);
    if (!tensor_index_.emplace(tensor.name, static_cast<int>(i)).second) {
      return bad("is there twice");
    }
    tensors_.push_back(std::move(tensor));
  }

  // Offsets count from the first aligned byte after the directory. Past the end when there is none.
  const int64_t data_start = (cursor.position() + alignment - 1) / alignment * alignment;
  const int64_t data_bytes = std::max<int64_t>(file_->size() - data_start, 0);
  std::vector<int> by_offset(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    by_offset[i] = static_cast<int>(i);
    if (tensor.bytes > data_bytes ||
        offsets[i] > static_cast<uint64_t>(data_bytes - tensor.bytes)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s is truncated: tensor '%s' needs %d bytes at %d, the file has %d bytes of data",
          file_->name(), Printable(tensor.name), tensor.bytes, offsets[i], data_bytes));
    }
    tensor.data = file_->data() + data_start + offsets[i];
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [&](int a, int b) { return offsets[a] < offsets[b]; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensor& before = tensors_[by_offset[i - 1]];
    if (before.data + before.bytes > tensors_[by_offset[i]].data) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: tensors '%s' and '%s' overlap",
                                                        file_->name(), Printable(before.name),
                                                        Printable(tensors_[by_offset[i]].name)));
    }
  }
  return absl::OkStatus();
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<const GgufFile::Value*> GgufFile::Lookup(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) {
    return absl::NotFoundError(absl::StrFormat("%s has no metadata '%s'", file_->name(), key));
  }
  return &found->second;
}

absl::Status GgufFile::WrongType(std::string_view key, const Value& value,
                                 const char* wanted) const {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: metadata '%s' is %s %s, expected %s", file_->name(), key,
                      value.is_array ? "an array of" : "a single", kTypeNames[value.type], wanted));
}

absl::StatusOr<int64_t> GgufFile::Int(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Lookup(key));
  std::optional<int64_t> number;
  if (!value->is_array) number = LoadInt(value->type, value->data);
  if (!number) return WrongType(key, *value, "an integer");
  return *number;
}

absl::StatusOr<double> GgufFile::Float(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Lookup(key));
  std::optional<double> number;
  if (!value->is_array) number = LoadFloat(value->type, value->data);
  if (!number) return WrongType(key, *value, "a number");
  return *number;
}

absl::StatusOr<bool> GgufFile::Bool(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Lookup(key));
  if (value->is_array || value->type != kBool) return WrongType(key, *value, "a bool");
  return *value->data != 0;
}

absl::StatusOr<std::string_view> GgufFile::String(std::string_view key) const {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> strings, Strings(key));
  const Value& value = values_.at(key);
  if (value.is_array) return WrongType(key, value, "a string");
  return strings[0];
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Ints(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Lookup(key));
  std::vector<int64_t> numbers;
  if (value->type != kString) numbers.reserve(value->count);
  for (int64_t i = 0; i < value->count; ++i) {
    const std::optional<int64_t> number =
        LoadInt(value->type, value->data + i * kTypeBytes[value->type]);
    if (!number) return WrongType(key, *value, "integers");
    numbers.push_back(*number);
  }
  return numbers;
}

absl::StatusOr<std::vector<float>> GgufFile::Floats(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Lookup(key));
  std::vector<float> numbers;
  if (value->type != kString) numbers.reserve(value->count);
  for (int64_t i = 0; i < value->count; ++i) {
    const std::optional<double> number =
        LoadFloat(value->type, value->data + i * kTypeBytes[value->type]);
    if (!number) return WrongType(key, *value, "numbers");
    numbers.push_back(static_cast<float>(*number));
  }
  return numbers;
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::Strings(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Lookup(key));
  if (value->type != kString) return WrongType(key, *value, "strings");
  std::vector<std::string_view> strings(static_cast<size_t>(value->count));
  const uint8_t* p = value->data;  // lengths were checked when the file was opened
  for (std::string_view& text : strings) {
    const uint64_t length = Load<uint64_t>(p);
    text = std::string_view(reinterpret_cast<const char*>(p + 8), length);
    p += 8 + length;
  }
  return strings;
}

bool GgufFile::IsArray(std::string_view key) const {
  const auto found = values_.find(key);
  return found != values_.end() && found->second.is_array;
}

absl::StatusOr<int64_t> GgufFile::IntOr(std::string_view key, int64_t absent) const {
  return Has(key) ? Int(key) : absent;
}

absl::StatusOr<double> GgufFile::FloatOr(std::string_view key, double absent) const {
  return Has(key) ? Float(key) : absent;
}

}  // namespace lapidary
