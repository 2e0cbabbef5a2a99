#include "worker/gpu_module.h"

#include <dlfcn.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <system_error>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

constexpr char kLibraryName[] = "liblapidary_cuda.so";

// Beside this program, or where an installation has libraries.
absl::StatusOr<std::string> FindLibrary() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path folder = program.parent_path();
  std::vector<std::string> looked_at;
  for (const std::filesystem::path& place : {folder, folder.parent_path() / "lib"}) {
    const std::filesystem::path file = place / kLibraryName;
    if (std::filesystem::exists(file, error)) return file.string();
    looked_at.push_back(file.string());
  }
  return absl::NotFoundError(absl::StrFormat(
      "this build has no GPU part: there is no %s (it is built where a CUDA toolkit "
      "is found, see docs/gpu.md)",
      absl::StrJoin(looked_at, " or ")));
}

absl::StatusOr<GpuModule*> Load(const std::string& path) {
  // Its symbols stay its own; it is never closed: device state has no good moment to go.
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the GPU part cannot be loaded: %s (GPUs need CUDA 13's cuBLASLt, NCCL and "
                        "an NVIDIA driver on this machine)",
                        dlerror()));
  }
  const auto entry = reinterpret_cast<GpuModuleEntry>(dlsym(library, kGpuModuleSymbol));
  GpuModule* const module = entry == nullptr ? nullptr : entry(LAPIDARY_VERSION);
  if (module == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s is not of this program's version, %s", path, LAPIDARY_VERSION));
  }
  return module;
}

}  // namespace

absl::StatusOr<GpuModule*> OpenGpuModule(const std::string& path) {
  static absl::Mutex mu(absl::kConstInit);
  static std::map<std::string, GpuModule*>& loaded = *new std::map<std::string, GpuModule*>;
  std::string file = path;
  if (file.empty()) {
    ASSIGN_OR_RETURN(file, FindLibrary());
  }
  absl::MutexLock lock(&mu);
  GpuModule*& module = loaded[file];
  if (module == nullptr) {
    ASSIGN_OR_RETURN(module, Load(file));
  }
  return module;
}

}  // namespace lapidary
