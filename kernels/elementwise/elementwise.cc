#include "kernels/elementwise/elementwise.h"

#include <cmath>

#include "kernels/elementwise/vector_math.h"

namespace lapidary {
namespace {

// Applies op(i, load, store) to eight elements at a time; the last few through a mask.
template <class Op>
inline void ForEach8(int64_t n, const Op& op) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    op([i](const float* p) { return _mm256_loadu_ps(p + i); },
       [i](float* p, __m256 v) { _mm256_storeu_ps(p + i, v); });
  }
  if (i < n) {
    const __m256i mask = TailMask(static_cast<int>(n - i));
    op([i, mask](const float* p) { return _mm256_maskload_ps(p + i, mask); },
       [i, mask](float* p, __m256 v) { _mm256_maskstore_ps(p + i, mask, v); });
  }
}

// 1 / sqrt(mean(x^2) + eps). Four accumulators of eight lanes, always in the same order.
float InverseRms(const float* x, int64_t dim, float eps) {
  __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                   _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= dim; i += 32) {
    for (int j = 0; j < 4; ++j) {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * j);
      sum[j] = _mm256_fmadd_ps(v, v, sum[j]);
    }
  }
  for (int j = 0; i < dim; i += 8, ++j) {
    const __m256 v = dim - i >= 8 ? _mm256_loadu_ps(x + i)
                                  : _mm256_maskload_ps(x + i, TailMask(static_cast<int>(dim - i)));
    sum[j] = _mm256_fmadd_ps(v, v, sum[j]);
  }
  const float total =
      Sum8(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
  return 1.0f / std::sqrt(total / static_cast<float>(dim) + eps);
}

}  // namespace

void RmsNorm(const float* x, const float* w, int64_t dim, float eps, float* y) {
  const __m256 scale = _mm256_set1_ps(InverseRms(x, dim, eps));
  if (w == nullptr) {
    ForEach8(dim, [&](auto load, auto store) { store(y, _mm256_mul_ps(load(x), scale)); });
  } else {
    ForEach8(dim, [&](auto load, auto store) {
      store(y, _mm256_mul_ps(_mm256_mul_ps(load(x), scale), load(w)));
    });
  }
}

void AddNormed(const float* f, const float* w, int64_t dim, float eps, float scalar, float* x) {
  const __m256 scale = _mm256_set1_ps(InverseRms(f, dim, eps));
  const __m256 factor = _mm256_set1_ps(scalar);
  ForEach8(dim, [&](auto load, auto store) {
    const __m256 normed = _mm256_mul_ps(_mm256_mul_ps(load(f), scale), load(w));
    store(x, _mm256_mul_ps(_mm256_add_ps(load(x), normed), factor));
  });
}

void AddNormedPair(float* dense, const float* w1, const float* experts, const float* w2,
                   const float* w, int64_t dim, float eps, float scalar, float* x) {
  const __m256 scale1 = _mm256_set1_ps(InverseRms(dense, dim, eps));
  const __m256 scale2 = _mm256_set1_ps(InverseRms(experts, dim, eps));
  ForEach8(dim, [&](auto load, auto store) {
    const __m256 a = _mm256_mul_ps(_mm256_mul_ps(load(dense), scale1), load(w1));
    const __m256 b = _mm256_mul_ps(_mm256_mul_ps(load(experts), scale2), load(w2));
    store(dense, _mm256_add_ps(a, b));
  });
  AddNormed(dense, w, dim, eps, scalar, x);
}

void GatedGelu(float* gate, const float* up, int64_t n) {
  ForEach8(n,
           [&](auto load, auto store) { store(gate, _mm256_mul_ps(Gelu8(load(gate)), load(up))); });
}

void ScaleRow(float* x, int64_t n, float factor) {
  const __m256 f = _mm256_set1_ps(factor);
  ForEach8(n, [&](auto load, auto store) { store(x, _mm256_mul_ps(load(x), f)); });
}

void AddScaled(const float* x, float factor, int64_t n, float* y) {
  const __m256 f = _mm256_set1_ps(factor);
  ForEach8(n, [&](auto load, auto store) { store(y, _mm256_fmadd_ps(load(x), f, load(y))); });
}

void MixRow(const float* a, const float* b, float b_factor, float factor, int64_t n, float* y) {
  const __m256 bf = _mm256_set1_ps(b_factor), f = _mm256_set1_ps(factor);
  ForEach8(n, [&](auto load, auto store) {
    store(y, _mm256_mul_ps(_mm256_fmadd_ps(load(b), bf, load(a)), f));
  });
}

void SoftCap(float* x, int64_t n, float cap) {
  const __m256 c = _mm256_set1_ps(cap);
  ForEach8(n, [&](auto load, auto store) {
    store(x, _mm256_mul_ps(Tanh8(_mm256_div_ps(load(x), c)), c));
  });
}

}  // namespace lapidary
