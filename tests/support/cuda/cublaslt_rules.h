// What the real cuBLASLt takes, so far as its documentation and reports say; where they leave
// doubt, less. Never compared with the library on a GPU.
#pragma once
#include "tests/support/cuda/cublaslt_types.h"

namespace lapidary::standin {

// D = alpha op(A) op(B) + beta C.
struct LtProblem {
  const LtDesc* desc;
  const LtLayout *a, *b, *c, *d;

  uint64_t m() const { return d->rows; }
  uint64_t n() const { return d->columns; }
  uint64_t k() const { return desc->transpose_a == CUBLAS_OP_N ? a->columns : a->rows; }
  bool is_fp8() const { return a->type == CUDA_R_8F_E4M3 || a->type == CUDA_R_8F_E5M2; }
};

size_t LtTypeBytes(int32_t type);

// INVALID_VALUE where the shapes contradict each other, NOT_SUPPORTED where no kernel would do.
cublasStatus_t CheckProblem(const LtProblem& p, int capability);

// The algorithms for it, best first; pointers are promised to be aligned as `preference` says.
int ChooseAlgorithms(const LtProblem& p, const LtPreference& preference, int most,
                     LtAlgorithm* algorithms);

// Whether an algorithm fits the problem.
bool Fits(const LtAlgorithm& algorithm, const LtProblem& p);

}  // namespace lapidary::standin
