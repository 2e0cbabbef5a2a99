// gpu_conformance: every kernel and wrapper on this machine's first GPU against its reference.
// Takes GoogleTest's flags. Exit code 77, as ctest skips: there is no GPU.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "gpu_conformance: no GPU: %s\n",
                 error == cudaSuccess ? "the driver sees none" : cudaGetErrorString(error));
    return 77;
  }
  return RUN_ALL_TESTS();
}
