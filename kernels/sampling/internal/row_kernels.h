// The loops over a row of logits, once per instruction set, with the same bits.
//
// As in kernels/gemm/internal/tile.h: nothing that a row_kernels_*.cc includes may define an inline
// function with external linkage.
#pragma once
#include <cstdint>

namespace lapidary {

struct RowKernels {
  // Appends (value, index) of logits[i] > threshold, i from begin on, to values and indices at
  // *count. Stops at end or once *count >= full; there is room for 64 more. Returns where it
  // stopped.
  int64_t (*collect_above)(const float* logits, int64_t begin, int64_t end, float threshold,
                           float* values, int64_t* indices, int64_t* count, int64_t full);
  // The largest value and where it first stands; -1 when every value is -infinity or NaN.
  int64_t (*arg_max)(const float* logits, int64_t n);
  // Largest value; NaN does not count.
  float (*max)(const float* logits, int64_t n);
  // Sum of exp((x - max) * inverse_temperature) over x >= threshold (NaN: the sum is NaN when
  // threshold is -infinity), *count of them.
  double (*sum_exp)(const float* logits, int64_t n, float threshold, float max,
                    float inverse_temperature, int64_t* count);
};

extern const RowKernels kRowKernelsAvx2;
extern const RowKernels kRowKernelsAvx512;

}  // namespace lapidary
