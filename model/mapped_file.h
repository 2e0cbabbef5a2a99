// A file mapped read-only. Readers check every offset against `size()` before they follow it. One
// that shrinks while it is mapped ends the process (common/mapped_faults.h says why).
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace lapidary {

class MappedFile {
 public:
  // NOT_FOUND for an absent file, INVALID_ARGUMENT for what is no regular file or is empty.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  const std::string& name() const { return name_; }  // the last path component, for messages

 private:
  MappedFile(std::string path, const uint8_t* data, int64_t size);

  const std::string path_, name_;
  const uint8_t* const data_;
  const int64_t size_;
};

// The part of `path` behind the last slash.
std::string BaseName(const std::string& path);

}  // namespace lapidary
