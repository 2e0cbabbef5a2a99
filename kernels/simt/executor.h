// Runs kernels on the calling OS thread: every CUDA thread is a fiber, blocks one after another.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <memory>
#include <string>

namespace lapidary::simt {

struct Grid {
  std::string name;
  dim3 blocks, threads;
  size_t dynamic_bytes = 0;  // of shared memory
  size_t shared_limit = 227 << 10;
};
// A kernel with its arguments: run(call.get()) once by each thread. (Not a std::function: its code
// would be instrumented in the checked flavour.)
struct KernelBody {
  void (*run)(const void* call) = nullptr;
  std::shared_ptr<const void> call;
  size_t call_bytes = 0;
};
// Mistakes are told to Fail; after a block with one no further
// block is run.
void RunGrid(const Grid& grid, const KernelBody& body);

}  // namespace lapidary::simt
