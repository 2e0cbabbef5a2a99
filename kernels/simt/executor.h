// Runs kernels on the calling OS thread: every CUDA thread is a fiber, blocks one after another.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <functional>
#include <string>

namespace lapidary::simt {

struct Grid {
  std::string name;
  dim3 blocks, threads;
  size_t dynamic_bytes = 0;  // of shared memory
  size_t shared_limit = 227 << 10;
};
// `body` is run once by each thread. Mistakes are told to Fail; after a block with one no further
// block is run.
void RunGrid(const Grid& grid, const std::function<void()>& body);

}  // namespace lapidary::simt
