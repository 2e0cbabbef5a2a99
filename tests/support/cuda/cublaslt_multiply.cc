#include "tests/support/cuda/cublaslt_multiply.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "tests/support/cuda/cublaslt_rules.h"
#include "tests/support/cuda/runtime.h"

namespace lapidary::standin {
namespace {

constexpr size_t kRows = 4;      // of a register block
constexpr size_t kColumns = 16;  // of it, and of a packed panel of B

template <class Fp8>
std::array<float, 256> Fp8Values() {
  std::array<float, 256> values;
  for (int i = 0; i < 256; ++i) {
    Fp8 v;
    v.__x = static_cast<__nv_fp8_storage_t>(i);
    values[i] = static_cast<float>(v);
  }
  return values;
}

// Elements p[i * stride], i < n, as floats.
void ToFloats(int32_t type, const void* p, size_t stride, size_t n, float* out) {
  static const std::array<float, 256> e4m3 = Fp8Values<__nv_fp8_e4m3>();
  static const std::array<float, 256> e5m2 = Fp8Values<__nv_fp8_e5m2>();
  switch (type) {
    case CUDA_R_32F:
      for (size_t i = 0; i < n; ++i) out[i] = static_cast<const float*>(p)[i * stride];
      return;
    case CUDA_R_16BF:
      for (size_t i = 0; i < n; ++i) {
        const uint32_t bits = uint32_t{static_cast<const uint16_t*>(p)[i * stride]} << 16;
        memcpy(&out[i], &bits, sizeof bits);
      }
      return;
    case CUDA_R_16F:
      for (size_t i = 0; i < n; ++i)
        out[i] = __half2float(static_cast<const __half*>(p)[i * stride]);
      return;
    case CUDA_R_8F_E4M3:
      for (size_t i = 0; i < n; ++i) out[i] = e4m3[static_cast<const uint8_t*>(p)[i * stride]];
      return;
    case CUDA_R_8F_E5M2:
      for (size_t i = 0; i < n; ++i) out[i] = e5m2[static_cast<const uint8_t*>(p)[i * stride]];
      return;
    default:
      return;
  }
}

float ElementOf(int32_t type, const void* p, size_t i) {
  float v = 0;
  ToFloats(type, static_cast<const unsigned char*>(p) + i * LtTypeBytes(type), 1, 1, &v);
  return v;
}

void StoreElement(int32_t type, void* p, size_t i, float v) {
  switch (type) {
    case CUDA_R_32F:
      static_cast<float*>(p)[i] = v;
      return;
    case CUDA_R_16BF:
      static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(v);
      return;
    case CUDA_R_16F:
      static_cast<__half*>(p)[i] = __float2half_rn(v);
      return;
    default:
      return;
  }
}

const void* Offset(const void* p, int32_t type, int64_t elements) {
  return static_cast<const unsigned char*>(p) + elements * static_cast<int64_t>(LtTypeBytes(type));
}

// op(X) row i (of m, over k), as floats.
void LoadRow(const LtLayout& l, int32_t transpose, const void* p, size_t i, size_t k, float* out) {
  const bool plain = transpose == CUBLAS_OP_N;
  const size_t first = plain ? i : i * static_cast<size_t>(l.ld);
  ToFloats(l.type, Offset(p, l.type, static_cast<int64_t>(first)),
           plain ? static_cast<size_t>(l.ld) : 1, k, out);
}
// op(X) column j (of n, over k).
void LoadColumn(const LtLayout& l, int32_t transpose, const void* p, size_t j, size_t k,
                float* out) {
  LoadRow(l, transpose == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N, p, j, k, out);
}

// Eight floats of a register, and of memory anywhere.
typedef float Floats __attribute__((vector_size(32)));
typedef float UnalignedFloats __attribute__((vector_size(32), aligned(4)));
Floats LoadFloats(const float* p) { return *reinterpret_cast<const UnalignedFloats*>(p); }

// sums[i][j] = a row i . panel column j; the panel is [k][kColumns].
void Block(const float* a, const float* panel, size_t k, float (&sums)[kRows][kColumns]) {
  Floats s[kRows][2] = {};
  for (size_t x = 0; x < k; ++x) {
    const Floats low = LoadFloats(panel + x * kColumns);
    const Floats high = LoadFloats(panel + x * kColumns + 8);
    for (size_t i = 0; i < kRows; ++i) {
      s[i][0] += a[i * k + x] * low;
      s[i][1] += a[i * k + x] * high;
    }
  }
  memcpy(sums, s, sizeof s);
}

float Dot(const float* a, const float* b, size_t k) {
  Floats s[4] = {};
  size_t x = 0;
  for (; x + 32 <= k; x += 32) {
    for (size_t i = 0; i < 4; ++i) s[i] += LoadFloats(a + x + 8 * i) * LoadFloats(b + x + 8 * i);
  }
  const Floats all = (s[0] + s[1]) + (s[2] + s[3]);
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += all[i];
  for (; x < k; ++x) sum += a[x] * b[x];
  return sum;
}

struct Epilogue {
  const LtCall& call;
  float alpha, beta;
  int32_t bias_type;

  explicit Epilogue(const LtCall& c)
      : call(c),
        alpha(c.device_alpha ? *c.device_alpha : c.alpha),
        beta(c.device_beta ? *c.device_beta : c.beta),
        bias_type(c.desc.bias_type != -1 ? c.desc.bias_type
                  : LtTypeBytes(c.layout_a.type) == 1 && c.layout_d.type == CUDA_R_32F
                      ? static_cast<int32_t>(CUDA_R_16BF)
                      : c.layout_d.type) {}

  float Scale(const void* scale, int32_t mode, size_t i) const {
    if (!scale) return 1;
    const float* s = static_cast<const float*>(scale);
    return mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F ? s[i] : *s;
  }

  void Store(size_t i, size_t j, float sum, const void* c, void* d) const {
    const LtDesc& desc = call.desc;
    float v = alpha * sum * Scale(desc.scale_a, desc.scale_mode_a, i) *
              Scale(desc.scale_b, desc.scale_mode_b, j);
    if (beta != 0) {
      v += beta * ElementOf(call.layout_c.type, c, j * static_cast<size_t>(call.layout_c.ld) + i);
    }
    if (desc.epilogue == CUBLASLT_EPILOGUE_BIAS) v += ElementOf(bias_type, desc.bias, i);
    StoreElement(call.layout_d.type, d, j * static_cast<size_t>(call.layout_d.ld) + i, v);
  }
};

struct Operands {
  const void *a, *b, *c;
  void* d;
};

// Few columns: row by row.
void MultiplyNarrow(const LtCall& call, const Epilogue& epilogue, size_t k, const Operands& o) {
  const size_t m = call.layout_d.rows, n = call.layout_d.columns;
  std::vector<float> columns(n * k), row(k);
  for (size_t j = 0; j < n; ++j) {
    LoadColumn(call.layout_b, call.desc.transpose_b, o.b, j, k, &columns[j * k]);
  }
  for (size_t i = 0; i < m; ++i) {
    LoadRow(call.layout_a, call.desc.transpose_a, o.a, i, k, row.data());
    for (size_t j = 0; j < n; ++j) {
      epilogue.Store(i, j, Dot(row.data(), &columns[j * k], k), o.c, o.d);
    }
  }
}

void MultiplyWide(const LtCall& call, const Epilogue& epilogue, size_t k, const Operands& o) {
  const size_t m = call.layout_d.rows, n = call.layout_d.columns;
  const size_t panels = (n + kColumns - 1) / kColumns;
  std::vector<float> packed(panels * kColumns * k), column(k), rows(kRows * k);
  for (size_t j = 0; j < n; ++j) {
    LoadColumn(call.layout_b, call.desc.transpose_b, o.b, j, k, column.data());
    float* panel = &packed[j / kColumns * kColumns * k + j % kColumns];
    for (size_t x = 0; x < k; ++x) panel[x * kColumns] = column[x];
  }
  for (size_t i = 0; i < m; i += kRows) {
    const size_t count = std::min(kRows, m - i);
    for (size_t r = 0; r < count; ++r) {
      LoadRow(call.layout_a, call.desc.transpose_a, o.a, i + r, k, &rows[r * k]);
    }
    for (size_t panel = 0; panel < panels; ++panel) {
      float sums[kRows][kColumns];
      Block(rows.data(), &packed[panel * kColumns * k], k, sums);
      for (size_t j = panel * kColumns; j < std::min(n, (panel + 1) * kColumns); ++j) {
        for (size_t r = 0; r < count; ++r) {
          epilogue.Store(i + r, j, sums[r][j % kColumns], o.c, o.d);
        }
      }
    }
  }
}

void MultiplyOne(const LtCall& call, const Operands& o) {
  const LtLayout& d = call.layout_d;
  const size_t k =
      call.desc.transpose_a == CUBLAS_OP_N ? call.layout_a.columns : call.layout_a.rows;
  const Epilogue epilogue(call);
  if (d.columns < 8) {
    MultiplyNarrow(call, epilogue, k, o);
  } else {
    MultiplyWide(call, epilogue, k, o);
  }
  for (size_t j = 0; j < d.columns; ++j) {
    NoteDeviceWrite(Offset(o.d, d.type, static_cast<int64_t>(j) * d.ld),
                    d.rows * LtTypeBytes(d.type));
  }
}

}  // namespace

void LtMultiply(const LtCall& call) {
  for (int32_t z = 0; z < call.layout_d.batch; ++z) {
    auto at = [z](const void* p, const LtLayout& l) {
      return Offset(p, l.type, z * l.batch_stride);
    };
    MultiplyOne(call, {at(call.a, call.layout_a), at(call.b, call.layout_b),
                       at(call.c, call.layout_c), const_cast<void*>(at(call.d, call.layout_d))});
  }
}

}  // namespace lapidary::standin
