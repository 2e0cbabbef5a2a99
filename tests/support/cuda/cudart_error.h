// What every function of the CUDA runtime stand-in begins and ends with.
#pragma once
#include <driver_types.h>

namespace lapidary::standin {

// No driver or no device, as SIMT_NO_DRIVER=1 and SIMT_DEVICES=0 ask for.
cudaError_t Unusable();
// The first line of a function that needs a device: no device, a sticky error of the current one,
// or a call from a host function, which may make none.
cudaError_t Enter();
// The last line: remembers an error for cudaGetLastError.
cudaError_t Return(cudaError_t error);
cudaError_t PeekLastError();
cudaError_t TakeLastError();

// While one lives, its thread runs a host function of a stream.
class HostFunctionScope {
 public:
  HostFunctionScope();
  ~HostFunctionScope();
};

}  // namespace lapidary::standin

#define LAPIDARY_RETURN_IF(expression)                   \
  if (const cudaError_t lapidary_error = (expression)) { \
    return ::lapidary::standin::Return(lapidary_error);  \
  }
