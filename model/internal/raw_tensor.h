// A tensor as a file stores it, before anyone asked whether the model wants it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/dtype.h"

namespace lapidary::internal {

struct RawTensor {
  std::string name;            // as stored
  std::string canonical;       // Hugging Face's name without the prefix, empty if there is none
  std::string file;            // base name
  std::string dtype_name;      // as the file spells it
  std::optional<DType> dtype;  // none: a type that we do not compute with
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
};

}  // namespace lapidary::internal
