// Matrix instructions of one warp. Fragments as PTX documents them; lane = 4 g + t.
#pragma once
#include <cstdint>

#include "kernels/simt/site.h"

namespace lapidary::simt {

// 8 x 8 matrices of 16-bit elements, `count` of them (2 or 4): lane 8 i + j gives row j of matrix
// i. r[i]: row g, elements 2 t and 2 t + 1; transposed: column g.
void LoadMatrices(uint32_t* r, int count, const void* row, bool transpose, Site site);
uint32_t TransposeMatrix(uint32_t v, Site site);

// d [16, 8] += a b, sums in fp32, k ascending. bf16: k 16; e4m3: k 32.
void MultiplyBf16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void MultiplyE4m3(float* d, const uint32_t* a, const uint32_t* b, Site site);

// The value of an e4m3 code.
float E4m3Value(uint8_t code);

}  // namespace lapidary::simt
