// y = x * W^T for packed weights, from 1 row to many. A row's bits depend on nothing but that row
// and the weights: not on the batch, its place in it, or the number of threads.
#pragma once
#include <cstdint>
#include <memory>

#include "kernels/gemm/arithmetic.h"
#include "kernels/gemm/packed_weight.h"
#include "kernels/thread_team.h"

namespace lapidary {

// Which block sizes int8 rows are quantised in: 16 for weights in kQ8Block16, 32 for all others.
// The caller that knows its weights spares the other one (4 % of a 512-row step).
enum class ActivationBlocks : uint8_t { k32, k16, kBoth };

// The rows of one product in the form the arithmetic reads (quantised per block, or arranged block
// major). One Set serves any number of products whose weights have the same k, whatever their
// formats' zero points. Reused from step to step; grows, never shrinks.
class ActivationRows {
 public:
  ActivationRows();
  ~ActivationRows();
  ActivationRows(ActivationRows&&) noexcept;
  ActivationRows& operator=(ActivationRows&&) noexcept;

  // Takes x [rows, k] fp32 with x_stride elements from row to row. Threaded; x is not read after
  // the call. int8: symmetric to [-127, 127] per row and block; a block whose largest magnitude is
  // below 1e-30 counts as zero; one that holds a NaN or an infinity, or exceeds 1e33, makes the row
  // NaN. `round_to_bf16` rounds x to bf16 first, for the FMA arithmetics (kDotBf16 always does).
  void Set(ThreadTeam& team, const float* x, int64_t rows, int64_t k, int64_t x_stride,
           Arithmetic arithmetic, bool round_to_bf16,
           ActivationBlocks blocks = ActivationBlocks::kBoth);

  struct Impl;
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// y [rows, y_stride] fp32: writes columns [0, w.n) and no others. Thread t computes a contiguous
// run of panels. Requires x set with k == w.k and an arithmetic that fits w.format. Does not change
// x.
void Matmul(ThreadTeam& team, const PackedWeight& w, const ActivationRows& x, float* y,
            int64_t y_stride);

}  // namespace lapidary
