// A pinned buffer that the host fills again although nothing says that its copy is done: proves
// that ThreadSanitizer looks at the stand-ins' thread and at memory that host and device share.
// Built and run only with the tsan preset, where it has to be reported.
//
// With the argument "clean" the host asks the stream first; then nothing may be reported.
#include <cuda_runtime_api.h>

#include <cstring>
#include <thread>

namespace {

// The copy has run: seen, but not known from the runtime.
__attribute__((no_sanitize("thread"))) bool Arrived(const int* p) {
  return *static_cast<const volatile int*>(p) == 7;
}

}  // namespace

int main(int argc, char** argv) {
  const bool clean = argc == 2 && std::strcmp(argv[1], "clean") == 0;
  void* pinned = nullptr;
  cudaStream_t stream = nullptr;
  if (cudaMallocHost(&pinned, 2 * sizeof(int)) != cudaSuccess) return 1;
  if (cudaStreamCreate(&stream) != cudaSuccess) return 1;
  int* const from = static_cast<int*>(pinned);
  int* const to = from + 1;
  *from = 7;
  *to = 0;
  if (cudaMemcpyAsync(to, from, sizeof(int), cudaMemcpyHostToHost, stream) != cudaSuccess) return 1;
  while (!Arrived(to)) std::this_thread::yield();
  if (clean && cudaStreamSynchronize(stream) != cudaSuccess) return 1;
  *from = 8;
  return 0;
}
