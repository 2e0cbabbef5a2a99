#include "model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/mapped_faults.h"

namespace lapidary {

std::string BaseName(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

MappedFile::MappedFile(std::string path, const uint8_t* data, int64_t size)
    : path_(std::move(path)), name_(BaseName(path_)), data_(data), size_(size) {
  NameMapping(data_, static_cast<size_t>(size_), path_);
}

MappedFile::~MappedFile() {
  ForgetMapping(data_);
  munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const int error = errno;
    const std::string what = absl::StrFormat("cannot open %s: %s", path, std::strerror(error));
    if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(what);
    return absl::InvalidArgumentError(what);
  }
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %s", path, S_ISREG(info.st_mode) ? "empty" : "not a regular file"));
  }
  void* const data = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  close(fd);  // the mapping keeps the file
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cannot map %s (%d bytes): %s", path, info.st_size, std::strerror(error)));
  }
  return std::unique_ptr<MappedFile>(
      new MappedFile(path, static_cast<const uint8_t*>(data), info.st_size));
}

}  // namespace lapidary
