// Row operations between the matrix products, all in fp32: norms, the gated activation, the soft
// cap.
//
// Each works on one row and its result depends on that row alone; whoever calls spreads rows over
// threads. Sizes are arbitrary; pointers need no alignment.
#pragma once
#include <cstdint>

namespace lapidary {

// y[i] = x[i] / sqrt(mean(x^2) + eps) * w[i];  w null: without the factor. y may be x.
// Source: Gemma 4 multiplies by w; a Gemma 3 caller passes 1 + w.
void RmsNorm(const float* x, const float* w, int64_t dim, float eps, float* y);

// x[i] = (x[i] + rms_norm(f)[i] * w[i]) * scalar: post norm, residual, layer scalar.
void AddNormed(const float* f, const float* w, int64_t dim, float eps, float scalar, float* x);

// f = rms_norm(dense) * w1 + rms_norm(experts) * w2;  x = (x + rms_norm(f) * w) * scalar.
// `dense` is overwritten with f.
void AddNormedPair(float* dense, const float* w1, const float* experts, const float* w2,
                   const float* w, int64_t dim, float eps, float scalar, float* x);

// gate[i] = gelu_tanh(gate[i]) * up[i]
void GatedGelu(float* gate, const float* up, int64_t n);

// x[i] = x[i] * factor
void ScaleRow(float* x, int64_t n, float factor);

// y[i] += x[i] * factor
void AddScaled(const float* x, float factor, int64_t n, float* y);

// y[i] = (a[i] + b[i] * b_factor) * factor
void MixRow(const float* a, const float* b, float b_factor, float factor, int64_t n, float* y);

// x[i] = cap * tanh(x[i] / cap)
void SoftCap(float* x, int64_t n, float cap);

}  // namespace lapidary
