#include "kernels/cuda/launch_recorder.h"

#include <cuda_runtime_api.h>

#include <map>
#include <utility>

namespace lapidary {
namespace {

// By the host's address of a kernel. Filled before main.
std::map<const void*, std::string>& Symbols() {
  static auto* symbols = new std::map<const void*, std::string>;
  return *symbols;
}
std::vector<RecordedLaunch>& Launches() {
  static auto* launches = new std::vector<RecordedLaunch>;
  return *launches;
}

}  // namespace

std::vector<RecordedLaunch> TakeLaunches() { return std::exchange(Launches(), {}); }

}  // namespace lapidary

// -- What nvcc's host code and kernels/gpu.h call. The symbols of an executable come before those
// of the runtime's library.
extern "C" {

// NOLINTBEGIN(bugprone-reserved-identifier): nvcc chose them
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* symbol, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  lapidary::Symbols()[host] = symbol;
}
// NOLINTEND(bugprone-reserved-identifier)

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  const dim3& block = config->blockDim;
  lapidary::Launches().push_back({lapidary::Symbols().at(kernel),
                                  static_cast<int>(block.x * block.y * block.z),
                                  config->dynamicSmemBytes});
  return cudaSuccess;
}

}  // extern "C"
