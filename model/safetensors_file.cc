#include "model/safetensors_file.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/internal/json_fields.h"

namespace lapidary {
namespace {

using internal::JsonFields;
using internal::RawTensor;
using nlohmann::json;

constexpr int64_t kMaxHeaderBytes = 100 << 20;  // the format's own limit
constexpr int64_t kMaxElements = int64_t{1} << 50;
constexpr const char* kIndexName = "model.safetensors.index.json";

struct StoredType {
  const char* name;
  int bytes;
  std::optional<DType> dtype;
};
const StoredType* FindType(const std::string& name) {
  static const StoredType kTypes[] = {
      {"F32", 4, DType::kF32}, {"F16", 2, DType::kF16}, {"BF16", 2, DType::kBf16},
      {"BOOL", 1, {}},         {"U8", 1, {}},           {"I8", 1, {}},
      {"F8_E4M3", 1, {}},      {"F8_E5M2", 1, {}},      {"F8_E8M0", 1, {}},
      {"U16", 2, {}},          {"I16", 2, {}},          {"U32", 4, {}},
      {"I32", 4, {}},          {"U64", 8, {}},          {"I64", 8, {}},
      {"F64", 8, {}},
  };
  for (const StoredType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

// One entry of the header: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}.
absl::StatusOr<RawTensor> ReadEntry(const MappedFile& file, const std::string& name,
                                    const json& entry, const uint8_t* data, int64_t data_bytes) {
  const JsonFields fields(entry, absl::StrFormat("%s: tensor '%s': ", file.name(), name));
  if (!entry.is_object()) return fields.Bad("", "has no object in the header");
  RawTensor tensor{.name = name, .file = file.name()};
  ASSIGN_OR_RETURN(tensor.dtype_name, fields.String("dtype", ""));
  const StoredType* const type = FindType(tensor.dtype_name);
  if (type == nullptr) {
    return fields.Bad("dtype",
                      absl::StrFormat("is '%s', a type we do not know", tensor.dtype_name));
  }
  tensor.dtype = type->dtype;
  const json* const shape = fields.Get("shape");
  if (shape == nullptr || !shape->is_array()) return fields.Bad("shape", "is not a list");
  int64_t elements = 1;
  for (const json& dim : *shape) {
    if (!dim.is_number_unsigned() ||
        (elements > 0 && dim.get<uint64_t>() > static_cast<uint64_t>(kMaxElements / elements))) {
      return fields.Bad("shape", "has a size that is negative, fractional or absurd");
    }
    elements *= dim.get<int64_t>();
    tensor.shape.push_back(dim.get<int64_t>());
  }
  const json* const offsets = fields.Get("data_offsets");
  if (offsets == nullptr || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return fields.Bad("data_offsets", "is not a pair of offsets");
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (begin > end) {
    return fields.Bad("data_offsets", absl::StrFormat("go from %d back to %d", begin, end));
  }
  if (end > static_cast<uint64_t>(data_bytes)) {
    return fields.Bad("data_offsets", absl::StrFormat("end at byte %d, and the file has %d bytes "
                                                      "of data: it is truncated or damaged",
                                                      end, data_bytes));
  }
  tensor.bytes = static_cast<int64_t>(end - begin);
  if (tensor.bytes != elements * type->bytes) {
    return fields.Bad(
        "data_offsets",
        absl::StrFormat("span %d bytes, but %s [%s] needs %d", tensor.bytes, type->name,
                        absl::StrJoin(tensor.shape, ", "), elements * type->bytes));
  }
  tensor.data = data + begin;
  return tensor;
}

absl::Status CheckOverlap(const MappedFile& file, const std::vector<RawTensor>& tensors,
                          size_t first) {
  std::vector<const RawTensor*> by_offset;
  for (size_t i = first; i < tensors.size(); ++i) {
    if (tensors[i].bytes > 0) by_offset.push_back(&tensors[i]);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const RawTensor* a, const RawTensor* b) { return a->data < b->data; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    if (by_offset[i - 1]->data + by_offset[i - 1]->bytes > by_offset[i]->data) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: tensors '%s' and '%s' overlap",
                                                        file.name(), by_offset[i - 1]->name,
                                                        by_offset[i]->name));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadIndexed(const std::string& folder, std::vector<std::unique_ptr<MappedFile>>* files,
                         std::vector<RawTensor>* tensors) {
  const std::string path = folder + "/" + kIndexName;
  ASSIGN_OR_RETURN(const json root, internal::ReadJsonObject(path));
  const JsonFields fields(root, path + ": ");
  ASSIGN_OR_RETURN(const json* const map, fields.Object("weight_map"));
  if (map == nullptr) return fields.Bad("weight_map", "is missing");
  std::map<std::string, std::vector<std::string>> names_by_file;
  for (const auto& [name, file] : map->items()) {
    const std::string file_name = file.is_string() ? file.get<std::string>() : "";
    if (file_name.empty() || absl::StrContains(file_name, "/") || file_name[0] == '.') {
      return fields.Bad("weight_map",
                        absl::StrFormat("names no file of this folder for '%s'", name));
    }
    names_by_file[file_name].push_back(name);
  }
  for (const auto& [file_name, names] : names_by_file) {
    ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file,
                     MappedFile::Open(absl::StrCat(folder, "/", file_name)));
    const size_t first = tensors->size();
    RETURN_IF_ERROR(ReadSafetensors(*file, tensors));
    std::set<std::string_view> stored;
    for (size_t i = first; i < tensors->size(); ++i) stored.insert((*tensors)[i].name);
    for (const std::string& name : names) {
      if (!stored.contains(name)) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "%s says that %s holds '%s', and it does not", kIndexName, file_name, name));
      }
    }
    files->push_back(std::move(file));
  }
  return absl::OkStatus();
}

std::vector<std::string> ListSafetensors(const std::string& folder) {
  std::vector<std::string> names;
  DIR* const directory = opendir(folder.c_str());
  if (directory == nullptr) return names;
  while (const dirent* const entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (absl::EndsWith(name, ".safetensors")) names.push_back(name);
  }
  closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

absl::Status ReadSafetensors(const MappedFile& file, std::vector<RawTensor>* tensors) {
  uint64_t header_bytes = 0;
  if (file.size() < 8) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has %d bytes, too few for safetensors", file.name(), file.size()));
  }
  std::memcpy(&header_bytes, file.data(), 8);
  if (header_bytes > static_cast<uint64_t>(std::min(kMaxHeaderBytes, file.size() - 8))) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is truncated or no safetensors file: its header has %d bytes, the "
                        "file %d",
                        file.name(), header_bytes, file.size()));
  }
  ASSIGN_OR_RETURN(const json header,
                   internal::ParseJsonObject(reinterpret_cast<const char*>(file.data() + 8),
                                             header_bytes, "the header of " + file.name()));
  const int64_t data_start = 8 + static_cast<int64_t>(header_bytes);
  const size_t first = tensors->size();
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(RawTensor tensor, ReadEntry(file, name, entry, file.data() + data_start,
                                                 file.size() - data_start));
    tensors->push_back(std::move(tensor));
  }
  return CheckOverlap(file, *tensors, first);
}

absl::Status ReadSafetensorsFolder(const std::string& folder,
                                   std::vector<std::unique_ptr<MappedFile>>* files,
                                   std::vector<RawTensor>* tensors) {
  std::string single = folder + "/model.safetensors";
  if (access(single.c_str(), F_OK) != 0) {
    if (access((folder + "/" + kIndexName).c_str(), F_OK) == 0) {
      return ReadIndexed(folder, files, tensors);
    }
    const std::vector<std::string> names = ListSafetensors(folder);
    if (names.empty()) {
      return absl::NotFoundError(
          absl::StrFormat("%s has neither model.safetensors nor %s", folder, kIndexName));
    }
    if (names.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s has %d safetensors files and no %s that says which belong together",
                          folder, names.size(), kIndexName));
    }
    single = folder + "/" + names[0];
  }
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(single));
  RETURN_IF_ERROR(ReadSafetensors(*file, tensors));
  files->push_back(std::move(file));
  return absl::OkStatus();
}

}  // namespace lapidary
