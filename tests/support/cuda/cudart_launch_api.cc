// Kernels: their attributes, and launches as operations of a stream.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "kernels/simt/executor.h"
#include "kernels/simt/launch.h"
#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/cudart_device.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_stream.h"
#include "tests/support/cuda/launch_log.h"

namespace lapidary::standin {
namespace {

constexpr int kPlainShared = 48 << 10;

struct Functions {
  std::mutex mu;
  std::unordered_map<const void*, int> dynamic_shared;  // allowed bytes
};
Functions& All() {
  static Functions* functions = new Functions;
  return *functions;
}

int AllowedShared(const void* function) {
  std::lock_guard lock(All().mu);
  const auto it = All().dynamic_shared.find(function);
  return it == All().dynamic_shared.end() ? kPlainShared : it->second;
}

// What a GPU refuses at the launch.
cudaError_t CheckShape(const simt::Grid& g, const void* function) {
  const uint64_t threads = uint64_t{g.threads.x} * g.threads.y * g.threads.z;
  if (threads == 0 || threads > 1024 || g.threads.z > 64) return cudaErrorInvalidConfiguration;
  if (g.blocks.x == 0 || g.blocks.y == 0 || g.blocks.z == 0 || g.blocks.x > 0x7fffffffu ||
      g.blocks.y > 65535 || g.blocks.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (g.dynamic_bytes > static_cast<size_t>(AllowedShared(function))) return cudaErrorInvalidValue;
  return cudaSuccess;
}

}  // namespace
}  // namespace lapidary::standin

namespace lapidary::simt {

cudaError_t EnqueueKernel(const void* function, const Grid& grid, cudaStream_t stream,
                          KernelBody body) {
  using namespace standin;
  if (const cudaError_t e = Enter()) return e;
  const auto s = FindStream(stream);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  LAPIDARY_RETURN_IF(CheckShape(grid, function));
  NoteLaunch(function);
  Grid limited = grid;
  limited.shared_limit = static_cast<size_t>(GetConfig().chip.shared_optin);
  return Return(Push(s, {.name = "kernel", .make = Once([limited, body = std::move(body)] {
                                             RunGrid(limited, body);
                                           })}));
}

}  // namespace lapidary::simt

using namespace lapidary::standin;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  LAPIDARY_RETURN_IF(Enter());
  if (!function) return Return(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > GetConfig().chip.shared_optin) {
    return Return(cudaErrorInvalidValue);
  }
  std::lock_guard lock(All().mu);
  All().dynamic_shared[function] = std::max(value, kPlainShared);
  return cudaSuccess;
}
// Registers and static shared memory are unknown here: 0.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  LAPIDARY_RETURN_IF(Enter());
  if (!function) return Return(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->maxDynamicSharedSizeBytes = AllowedShared(function);
  attributes->binaryVersion = attributes->ptxVersion = GetConfig().chip.capability;
  return cudaSuccess;
}
// By threads, blocks and shared memory; a register count of 64 a thread is assumed.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int threads, size_t dynamic_shared) {
  LAPIDARY_RETURN_IF(Enter());
  if (!function || threads <= 0 || threads > 1024) return Return(cudaErrorInvalidValue);
  const ChipSpec& chip = GetConfig().chip;
  const int warps = (threads + 31) / 32;
  int most = std::min(chip.blocks_processor, chip.threads_processor / 32 / warps);
  most = std::min(most, 65536 / (64 * 32 * warps));
  const size_t shared = dynamic_shared + 1024;  // what the system keeps for itself
  *blocks =
      dynamic_shared > static_cast<size_t>(AllowedShared(function))
          ? 0
          : std::min(most, static_cast<int>(static_cast<size_t>(chip.shared_processor) / shared));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                   const void* function,
                                                                   int threads, size_t shared,
                                                                   unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

}  // extern "C"
