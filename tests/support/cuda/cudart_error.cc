// Names and descriptions as the real library gives them, and each thread's last error.
#include "tests/support/cuda/cudart_error.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>

#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/cudart_device.h"

namespace lapidary::standin {
namespace {

struct Description {
  cudaError_t error;
  const char* text;
};
#define LAPIDARY_ERROR(error, text) \
  { error, text }
struct NamedDescription {
  cudaError_t error;
  const char *name, *text;
};
#define LAPIDARY_NAMED(error, text) \
  { error, #error, text }
constexpr NamedDescription kErrors[] = {
    LAPIDARY_NAMED(cudaSuccess, "no error"),
    LAPIDARY_NAMED(cudaErrorInvalidValue, "invalid argument"),
    LAPIDARY_NAMED(cudaErrorMemoryAllocation, "out of memory"),
    LAPIDARY_NAMED(cudaErrorInitializationError, "initialization error"),
    LAPIDARY_NAMED(cudaErrorCudartUnloading, "driver shutting down"),
    LAPIDARY_NAMED(cudaErrorProfilerDisabled,
                   "profiler disabled while using external profiling tool"),
    LAPIDARY_NAMED(cudaErrorProfilerNotInitialized,
                   "profiler not initialized: call cudaProfilerInitialize()"),
    LAPIDARY_NAMED(cudaErrorProfilerAlreadyStarted, "profiler already started"),
    LAPIDARY_NAMED(cudaErrorProfilerAlreadyStopped, "profiler already stopped"),
    LAPIDARY_NAMED(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    LAPIDARY_NAMED(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    LAPIDARY_NAMED(cudaErrorInvalidSymbol, "invalid device symbol"),
    LAPIDARY_NAMED(cudaErrorInvalidHostPointer, "invalid host pointer"),
    LAPIDARY_NAMED(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    LAPIDARY_NAMED(cudaErrorInvalidTexture, "invalid texture reference"),
    LAPIDARY_NAMED(cudaErrorInvalidTextureBinding, "texture is not bound to a pointer"),
    LAPIDARY_NAMED(cudaErrorInvalidChannelDescriptor, "invalid channel descriptor"),
    LAPIDARY_NAMED(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    LAPIDARY_NAMED(cudaErrorAddressOfConstant, "invalid address of constant"),
    LAPIDARY_NAMED(cudaErrorTextureFetchFailed, "fetch from texture failed"),
    LAPIDARY_NAMED(cudaErrorTextureNotBound, "cannot fetch from a texture that is not bound"),
    LAPIDARY_NAMED(cudaErrorSynchronizationError, "incorrect use of __syncthreads()"),
    LAPIDARY_NAMED(cudaErrorInvalidFilterSetting,
                   "linear filtering not supported for non-float type"),
    LAPIDARY_NAMED(cudaErrorInvalidNormSetting,
                   "read as normalized float not supported for data type"),
    LAPIDARY_NAMED(cudaErrorMixedDeviceExecution,
                   "device emulation mode and device execution mode cannot be mixed"),
    LAPIDARY_NAMED(cudaErrorNotYetImplemented, "feature not yet implemented"),
    LAPIDARY_NAMED(cudaErrorMemoryValueTooLarge,
                   "memory size or pointer value too large to fit in 32 bit"),
    LAPIDARY_NAMED(cudaErrorStubLibrary, "CUDA driver is a stub library"),
    LAPIDARY_NAMED(cudaErrorInsufficientDriver,
                   "CUDA driver version is insufficient for CUDA runtime version"),
    LAPIDARY_NAMED(cudaErrorCallRequiresNewerDriver,
                   "API call is not supported in the installed CUDA driver"),
    LAPIDARY_NAMED(cudaErrorInvalidSurface, "invalid surface reference"),
    LAPIDARY_NAMED(cudaErrorDuplicateVariableName,
                   "duplicate global variable looked up by string name"),
    LAPIDARY_NAMED(cudaErrorDuplicateTextureName, "duplicate texture looked up by string name"),
    LAPIDARY_NAMED(cudaErrorDuplicateSurfaceName, "duplicate surface looked up by string name"),
    LAPIDARY_NAMED(cudaErrorDevicesUnavailable,
                   "CUDA-capable device(s) is/are busy or unavailable"),
    LAPIDARY_NAMED(cudaErrorIncompatibleDriverContext, "incompatible driver context"),
    LAPIDARY_NAMED(cudaErrorMissingConfiguration, "__global__ function call is not configured"),
    LAPIDARY_NAMED(cudaErrorPriorLaunchFailure, "unspecified launch failure in prior launch"),
    LAPIDARY_NAMED(cudaErrorLaunchMaxDepthExceeded,
                   "launch would exceed maximum depth of nested launches"),
    LAPIDARY_NAMED(cudaErrorLaunchFileScopedTex,
                   "launch failed because kernel uses unsupported, file-scoped textures (texture "
                   "objects are supported)"),
    LAPIDARY_NAMED(cudaErrorLaunchFileScopedSurf,
                   "launch failed because kernel uses unsupported, file-scoped surfaces (surface "
                   "objects are supported)"),
    LAPIDARY_NAMED(cudaErrorSyncDepthExceeded,
                   "cudaDeviceSynchronize failed because caller's grid depth exceeds "
                   "cudaLimitDevRuntimeSyncDepth"),
    LAPIDARY_NAMED(
        cudaErrorLaunchPendingCountExceeded,
        "launch failed because launch would exceed cudaLimitDevRuntimePendingLaunchCount"),
    LAPIDARY_NAMED(cudaErrorInvalidDeviceFunction, "invalid device function"),
    LAPIDARY_NAMED(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    LAPIDARY_NAMED(cudaErrorInvalidDevice, "invalid device ordinal"),
    LAPIDARY_NAMED(cudaErrorDeviceNotLicensed, "device doesn't have valid Grid license"),
    LAPIDARY_NAMED(cudaErrorSoftwareValidityNotEstablished, "integrity checks failed"),
    LAPIDARY_NAMED(cudaErrorStartupFailure, "startup failure in cuda runtime"),
    LAPIDARY_NAMED(cudaErrorInvalidKernelImage, "device kernel image is invalid"),
    LAPIDARY_NAMED(cudaErrorDeviceUninitialized, "invalid device context"),
    LAPIDARY_NAMED(cudaErrorMapBufferObjectFailed, "mapping of buffer object failed"),
    LAPIDARY_NAMED(cudaErrorUnmapBufferObjectFailed, "unmapping of buffer object failed"),
    LAPIDARY_NAMED(cudaErrorArrayIsMapped, "array is mapped"),
    LAPIDARY_NAMED(cudaErrorAlreadyMapped, "resource already mapped"),
    LAPIDARY_NAMED(cudaErrorNoKernelImageForDevice,
                   "no kernel image is available for execution on the device"),
    LAPIDARY_NAMED(cudaErrorAlreadyAcquired, "resource already acquired"),
    LAPIDARY_NAMED(cudaErrorNotMapped, "resource not mapped"),
    LAPIDARY_NAMED(cudaErrorNotMappedAsArray, "resource not mapped as array"),
    LAPIDARY_NAMED(cudaErrorNotMappedAsPointer, "resource not mapped as pointer"),
    LAPIDARY_NAMED(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    LAPIDARY_NAMED(cudaErrorUnsupportedLimit, "limit is not supported on this architecture"),
    LAPIDARY_NAMED(cudaErrorDeviceAlreadyInUse,
                   "exclusive-thread device already in use by a different thread"),
    LAPIDARY_NAMED(cudaErrorPeerAccessUnsupported,
                   "peer access is not supported between these two devices"),
    LAPIDARY_NAMED(cudaErrorInvalidPtx, "a PTX JIT compilation failed"),
    LAPIDARY_NAMED(cudaErrorInvalidGraphicsContext, "invalid OpenGL or DirectX context"),
    LAPIDARY_NAMED(cudaErrorNvlinkUncorrectable,
                   "uncorrectable NVLink error detected during the execution"),
    LAPIDARY_NAMED(cudaErrorJitCompilerNotFound, "PTX JIT compiler library not found"),
    LAPIDARY_NAMED(cudaErrorUnsupportedPtxVersion,
                   "the provided PTX was compiled with an unsupported toolchain."),
    LAPIDARY_NAMED(cudaErrorJitCompilationDisabled, "PTX JIT compilation was disabled"),
    LAPIDARY_NAMED(cudaErrorUnsupportedExecAffinity,
                   "the provided execution affinity is not supported"),
    LAPIDARY_NAMED(cudaErrorUnsupportedDevSideSync,
                   "the provided PTX contains unsupported call to cudaDeviceSynchronize"),
    LAPIDARY_NAMED(cudaErrorContained,
                   "Invalid access of peer GPU memory over nvlink or a hardware error"),
    LAPIDARY_NAMED(cudaErrorInvalidSource, "device kernel image is invalid"),
    LAPIDARY_NAMED(cudaErrorFileNotFound, "file not found"),
    LAPIDARY_NAMED(cudaErrorSharedObjectSymbolNotFound, "shared object symbol not found"),
    LAPIDARY_NAMED(cudaErrorSharedObjectInitFailed, "shared object initialization failed"),
    LAPIDARY_NAMED(cudaErrorOperatingSystem,
                   "OS call failed or operation not supported on this OS"),
    LAPIDARY_NAMED(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    LAPIDARY_NAMED(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    LAPIDARY_NAMED(cudaErrorLossyQuery, "attempted introspection would be semantically lossy"),
    LAPIDARY_NAMED(cudaErrorSymbolNotFound, "named symbol not found"),
    LAPIDARY_NAMED(cudaErrorNotReady, "device not ready"),
    LAPIDARY_NAMED(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    LAPIDARY_NAMED(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    LAPIDARY_NAMED(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    LAPIDARY_NAMED(cudaErrorLaunchIncompatibleTexturing, "launch uses incompatible texturing mode"),
    LAPIDARY_NAMED(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"),
    LAPIDARY_NAMED(cudaErrorPeerAccessNotEnabled, "peer access has not been enabled"),
    LAPIDARY_NAMED(cudaErrorSetOnActiveProcess,
                   "cannot set while device is active in this process"),
    LAPIDARY_NAMED(cudaErrorContextIsDestroyed, "context is destroyed"),
    LAPIDARY_NAMED(cudaErrorAssert, "device-side assert triggered"),
    LAPIDARY_NAMED(cudaErrorTooManyPeers, "peer mapping resources exhausted"),
    LAPIDARY_NAMED(cudaErrorHostMemoryAlreadyRegistered,
                   "part or all of the requested memory range is already mapped"),
    LAPIDARY_NAMED(cudaErrorHostMemoryNotRegistered,
                   "pointer does not correspond to a registered memory region"),
    LAPIDARY_NAMED(cudaErrorHardwareStackError, "hardware stack error"),
    LAPIDARY_NAMED(cudaErrorIllegalInstruction, "an illegal instruction was encountered"),
    LAPIDARY_NAMED(cudaErrorMisalignedAddress, "misaligned address"),
    LAPIDARY_NAMED(cudaErrorInvalidAddressSpace,
                   "operation not supported on global/shared address space"),
    LAPIDARY_NAMED(cudaErrorInvalidPc, "invalid program counter"),
    LAPIDARY_NAMED(cudaErrorLaunchFailure, "unspecified launch failure"),
    LAPIDARY_NAMED(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch"),
    LAPIDARY_NAMED(cudaErrorTensorMemoryLeak, "tensor memory not completely freed"),
    LAPIDARY_NAMED(cudaErrorNotPermitted, "operation not permitted"),
    LAPIDARY_NAMED(cudaErrorNotSupported, "operation not supported"),
    LAPIDARY_NAMED(cudaErrorSystemNotReady, "system not yet initialized"),
    LAPIDARY_NAMED(cudaErrorSystemDriverMismatch,
                   "system has unsupported display driver / cuda driver combination"),
    LAPIDARY_NAMED(cudaErrorCompatNotSupportedOnDevice,
                   "forward compatibility was attempted on non supported HW"),
    LAPIDARY_NAMED(cudaErrorMpsConnectionFailed,
                   "MPS client failed to connect to the MPS control daemon or the MPS server"),
    LAPIDARY_NAMED(cudaErrorMpsRpcFailure,
                   "the remote procedural call between the MPS server and the MPS client failed"),
    LAPIDARY_NAMED(cudaErrorMpsServerNotReady,
                   "MPS server is not ready to accept new MPS client requests"),
    LAPIDARY_NAMED(cudaErrorMpsMaxClientsReached,
                   "the hardware resources required to create MPS client have been exhausted"),
    LAPIDARY_NAMED(
        cudaErrorMpsMaxConnectionsReached,
        "the hardware resources required to support device connections have been exhausted"),
    LAPIDARY_NAMED(cudaErrorMpsClientTerminated,
                   "the MPS client has been terminated by the server"),
    LAPIDARY_NAMED(cudaErrorCdpNotSupported,
                   "is using CUDA Dynamic Parallelism, but the current configuration, like MPS, "
                   "does not support it"),
    LAPIDARY_NAMED(
        cudaErrorCdpVersionMismatch,
        "unsupported interaction between different versions of CUDA Dynamic Parallelism"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureUnsupported,
                   "operation not permitted when stream is capturing"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureInvalidated,
                   "operation failed due to a previous error during capture"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureMerge,
                   "operation would result in a merge of separate capture sequences"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureUnmatched,
                   "capture was not ended in the same stream as it began"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureIsolation,
                   "dependency created on uncaptured work in another stream"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureImplicit,
                   "operation would make the legacy stream depend on a capturing blocking stream"),
    LAPIDARY_NAMED(cudaErrorCapturedEvent,
                   "operation not permitted on an event last recorded in a capturing stream"),
    LAPIDARY_NAMED(cudaErrorStreamCaptureWrongThread,
                   "attempt to terminate a thread-local capture sequence from another thread"),
    LAPIDARY_NAMED(cudaErrorTimeout, "wait operation timed out"),
    LAPIDARY_NAMED(cudaErrorGraphExecUpdateFailure,
                   "the graph update was not performed because it included changes which violated "
                   "constraints specific to instantiated graph update"),
    LAPIDARY_NAMED(cudaErrorExternalDevice,
                   "an async error has occured in external entity outside of CUDA"),
    LAPIDARY_NAMED(cudaErrorInvalidClusterSize,
                   "a kernel launch error has occurred due to cluster misconfiguration"),
    LAPIDARY_NAMED(
        cudaErrorFunctionNotLoaded,
        "the function handle is not loaded when calling an API that requires a loaded function"),
    LAPIDARY_NAMED(
        cudaErrorInvalidResourceType,
        "one or more resources passed in are not valid resource types for the operation"),
    LAPIDARY_NAMED(cudaErrorInvalidResourceConfiguration,
                   "one or more resources are insufficient or non-applicable for the operation"),
    LAPIDARY_NAMED(cudaErrorUnknown, "unknown error"),
};

const NamedDescription* Find(cudaError_t error) {
  const auto* found = std::find_if(std::begin(kErrors), std::end(kErrors),
                                   [&](const NamedDescription& d) { return d.error == error; });
  return found == std::end(kErrors) ? nullptr : found;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local bool in_host_function = false;

}  // namespace

cudaError_t Return(cudaError_t error) {
  // Not-ready is an answer, no error.
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t Unusable() {
  if (!GetConfig().driver) return cudaErrorInsufficientDriver;
  if (GetConfig().devices == 0) return cudaErrorNoDevice;
  return cudaSuccess;
}

cudaError_t Enter() {
  if (const cudaError_t e = Unusable()) return Return(e);
  if (in_host_function) return Return(cudaErrorNotPermitted);
  return Return(StickyError(CurrentDevice()));
}

HostFunctionScope::HostFunctionScope() { in_host_function = true; }
HostFunctionScope::~HostFunctionScope() { in_host_function = false; }

cudaError_t PeekLastError() {
  if (const cudaError_t e = Unusable()) return e;
  const cudaError_t sticky = StickyError(CurrentDevice());
  return sticky != cudaSuccess ? sticky : last_error;
}
cudaError_t TakeLastError() {
  const cudaError_t e = PeekLastError();
  last_error = cudaSuccess;
  return e;
}

}  // namespace lapidary::standin

using namespace lapidary::standin;

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  const NamedDescription* d = Find(error);
  return d ? d->name : "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  const NamedDescription* d = Find(error);
  return d ? d->text : "unrecognized error code";
}
cudaError_t cudaGetLastError() { return TakeLastError(); }
cudaError_t cudaPeekAtLastError() { return PeekLastError(); }

}  // extern "C"
