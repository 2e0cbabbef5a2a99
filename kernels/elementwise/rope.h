// Rotary position embedding: dimension i turns with i + dim / 2 by position * frequency[i].
#pragma once
#include <cstdint>
#include <vector>

namespace lapidary {

// frequency[i] = theta^(-2 i / head_dim) / factor for i < rotated_pairs, every step in fp32 as
// Hugging Face takes it: one last place less or more turns position 500 by 3e-5. The product with
// the position is fp32, too.
std::vector<float> RopeFrequencies(double theta, int head_dim, int rotated_pairs, double factor);

// cos_sin [2 * pairs]: cosines, then sines, of fp32(position * frequency[i]). Absolute error below
// 2^-23 for angles up to 2^23.
void RopeRow(int32_t position, const float* frequency, int pairs, float* cos_sin);

// Turns one head in place: x [dim], pairs (i, i + dim / 2) for i < pairs; the rest stays.
void Rotate(const float* cos_sin, int pairs, int dim, float* x);

}  // namespace lapidary
