// Safetensors: one file, or the shards that a model.safetensors.index.json lists.
//
// The header's length, JSON, types, shapes and offsets are checked against the file; tensors may
// not overlap. The format promises no alignment.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/internal/raw_tensor.h"
#include "model/mapped_file.h"

namespace lapidary {

// Appends the tensors of one mapped file.
absl::Status ReadSafetensors(const MappedFile& file, std::vector<internal::RawTensor>* tensors);

// The weights of a folder: model.safetensors, else the shards of the index, else the only
// *.safetensors there is. Appends the mappings that the tensors point into. NOT_FOUND when the
// folder has none.
absl::Status ReadSafetensorsFolder(const std::string& folder,
                                   std::vector<std::unique_ptr<MappedFile>>* files,
                                   std::vector<internal::RawTensor>* tensors);

}  // namespace lapidary
