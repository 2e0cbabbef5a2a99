// Hopper's warpgroup products: 128 threads, operands in shared memory through descriptors, results
// in registers once their group has been waited for.
//
// Lazy: accumulators hold NaN from the product's issue to its wait, and the operands are read when
// somebody waits. Eager: they are read, and the sums there, at once.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/simt/site.h"

namespace lapidary::simt {

struct ThreadState;

// d [64, columns] += a [64, 16] b [columns, 16]^T.
struct WarpgroupProduct {
  uint64_t a = 0, b = 0;
  int held = 0;                 // accumulators of a thread: columns / 2, 32 or 64
  std::array<float*, 128> d{};  // of each thread
  Site site;
  bool done = false;

  int columns() const { return 2 * held; }  // rows of b
};

struct WarpgroupState {
  uint32_t arrived = 0;
  WarpgroupProduct meeting;  // the product that threads are issuing
  std::vector<WarpgroupProduct> products;
  void Reset() {
    arrived = 0;
    products.clear();
  }
};

// What one thread has issued and not waited for.
struct WgmmaQueue {
  struct Accumulators {
    float* d;
    std::array<float, 64> value;
    int held;
    size_t last;  // product that adds to it
  };
  std::vector<Accumulators> pending;
  std::vector<size_t> group_end;  // committed groups: products before
  size_t issued = 0, waited = 0;  // products
  bool fenced = false;
  void Reset() {
    pending.clear();
    group_end.clear();
    issued = waited = 0;
    fenced = false;
  }
};

// Byte offset in shared memory of element (row, k) of an operand: rows of 128 bytes, 16-byte chunks
// swizzled by the row's place among eight.
uint32_t OperandOffset(uint64_t descriptor, int row, int k);

uint64_t MakeDescriptor(const void* tile, uint32_t stride_bytes, Site site);
void FenceProducts();
// `held`: accumulators of a thread, 32 (64 columns) or 64 (128 columns).
void MultiplyWarpgroup(float* d, int held, uint64_t a, uint64_t b, Site site);
void CommitProducts();
void WaitProducts(int pending, Site site);
void CheckProductsAtExit(ThreadState& thread);

}  // namespace lapidary::simt
