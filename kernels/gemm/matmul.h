// y = x * W^T for packed weights, from 1 row to many. A row's bits depend on nothing but that row
// and the weights: not on the batch, its place in it, or the number of threads.
#pragma once
#include <cstdint>
#include <memory>

#include "kernels/gemm/packed_weight.h"
#include "kernels/thread_team.h"

namespace lapidary {

// The instruction that multiplies. Resolved once per group and part of the determinism key; two
// arithmetics may differ in the last bits.
enum class Arithmetic : uint8_t {
  kInt8Vnni,    // AVX-512 VNNI, the quantised formats
  kInt8Avx512,  // AVX-512 without VNNI: the same integers, so the same bits as kInt8Vnni
  kInt8Avx2,    // AVX2: again the same bits
  kFmaAvx512,   // fp32 FMA over fp32 or bf16 weights
  kFmaAvx2,     // the same bits as kFmaAvx512
  kDotBf16,     // vdpbf16ps
};
const char* Name(Arithmetic arithmetic);
bool Supported(Arithmetic arithmetic);  // by this CPU

// The rows of one product in the form the arithmetic reads (quantised per 32, or arranged block
// major). Reused from step to step; grows, never shrinks.
class ActivationRows {
 public:
  ActivationRows();
  ~ActivationRows();
  ActivationRows(ActivationRows&&) noexcept;
  ActivationRows& operator=(ActivationRows&&) noexcept;

  // Takes x [rows, k] fp32 with x_stride elements from row to row, for products with weights whose
  // formats use block 32 and (when any is kQ8Block16) block 16. Threaded over rows.
  void Set(ThreadTeam& team, const float* x, int64_t rows, int64_t k, int64_t x_stride,
           Arithmetic arithmetic, bool round_to_bf16);

  struct Impl;
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// y [rows, y_stride] fp32, columns [0, w.n). Thread t computes a contiguous run of panels.
// Requires x set with k == w.k and an arithmetic that fits w.format.
void Matmul(ThreadTeam& team, const PackedWeight& w, ActivationRows& x, float* y, int64_t y_stride);

}  // namespace lapidary
