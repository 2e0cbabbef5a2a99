// A warp finishes one head of one token. A lane holds the same columns of both halves of the head,
// so that a rotation (columns i and i + head_dim / 2) needs no exchange; one butterfly gives the
// norm, one more the largest number for e4m3.
//
// Per token and head of 256: 512 bytes read, 512 written (a key with its value: twice that), 2 KiB
// of weights and angles that stay in L1; about 2,000 FLOP. Memory-bound with the whole machine, and
// bound by latency for the few tokens of a decode step, so a warp has all its loads in flight.
#include "kernels/attention/norm_rope_write_cuda.h"
#include "kernels/gpu.h"

namespace lapidary {
namespace {

constexpr int kWarps = 4;
constexpr float kLargestE4m3 = 448;

// kWidth numbers in one access.
template <int kWidth>
GPU_DEVICE void LoadRow(const __nv_bfloat16* from, float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    const uint2 v = gpu::Load<uint2>(from);
    x[0] = gpu::Bf16Low(v.x), x[1] = gpu::Bf16High(v.x);
    x[2] = gpu::Bf16Low(v.y), x[3] = gpu::Bf16High(v.y);
  } else if constexpr (kWidth == 2) {
    const uint32_t v = gpu::Load<uint32_t>(from);
    x[0] = gpu::Bf16Low(v), x[1] = gpu::Bf16High(v);
  } else {
    x[0] = gpu::Bf16Low(gpu::Load<uint16_t>(from));
  }
}

template <int kWidth>
GPU_DEVICE void LoadRow(const float* from, float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    const float4 v = gpu::Load<float4>(from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else if constexpr (kWidth == 2) {
    const float2 v = gpu::Load<float2>(from);
    x[0] = v.x, x[1] = v.y;
  } else {
    x[0] = gpu::Load<float>(from);
  }
}

template <int kWidth>
GPU_DEVICE void StoreBf16(void* to, const float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    gpu::Store(to, make_uint2(gpu::PackBf16(x[0], x[1]), gpu::PackBf16(x[2], x[3])));
  } else if constexpr (kWidth == 2) {
    gpu::Store(to, gpu::PackBf16(x[0], x[1]));
  } else {
    gpu::Store(to, static_cast<uint16_t>(gpu::PackBf16(x[0], 0)));
  }
}

// Codes of x / scale.
template <int kWidth>
GPU_DEVICE void StoreE4m3(void* to, const float (&x)[kWidth], float scale) {
  if constexpr (kWidth == 1) {
    gpu::Store(
        to, static_cast<uint8_t>(__nv_cvt_float_to_fp8(x[0] / scale, __NV_SATFINITE, __NV_E4M3)));
  } else {
    uint16_t pairs[kWidth / 2];
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) {
      pairs[i] = __nv_cvt_float2_to_fp8x2(make_float2(x[2 * i] / scale, x[2 * i + 1] / scale),
                                          __NV_SATFINITE, __NV_E4M3);
    }
    if constexpr (kWidth == 4) {
      gpu::Store(to, pairs[0] | uint32_t{pairs[1]} << 16);
    } else {
      gpu::Store(to, pairs[0]);
    }
  }
}

// A head in the registers of a warp: packets of kWidth columns, packet (round, lane) of the first
// half in x[round][0], the same of the second half in x[round][1].
template <int kWidth, int kRounds>
struct Head {
  float x[kRounds][2][kWidth];

  static GPU_DEVICE int FirstColumn(int round) {
    return (round * 32 + static_cast<int>(threadIdx.x) % 32) * kWidth;
  }

  GPU_DEVICE void Load(const __nv_bfloat16* head, int half) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int c = FirstColumn(r);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x[r][0][i] = x[r][1][i] = 0;
      if (c < half) {
        LoadRow<kWidth>(head + c, x[r][0]);
        LoadRow<kWidth>(head + half + c, x[r][1]);
      }
    }
  }

  // 1 / sqrt(mean of squares + eps)
  GPU_DEVICE float InverseNorm(int half, float eps) const {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum += x[r][0][i] * x[r][0][i] + x[r][1][i] * x[r][1][i];
    }
    return 1.0f / sqrtf(gpu::WarpSum(sum) / static_cast<float>(2 * half) + eps);
  }

  // times factor, and times weight where there is one
  GPU_DEVICE void Scale(int half, float factor, const float* weight) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int c = FirstColumn(r);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float w[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) w[i] = 1;
        if (weight != nullptr && c < half) LoadRow<kWidth>(weight + h * half + c, w);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) x[r][h][i] = x[r][h][i] * factor * w[i];
      }
    }
  }

  GPU_DEVICE void Turn(const float* cosines, int pairs) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int c = FirstColumn(r);
      if (c >= pairs) continue;
      float cosine[kWidth], sine[kWidth];
      LoadRow<kWidth>(cosines + c, cosine);
      LoadRow<kWidth>(cosines + pairs + c, sine);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float a = x[r][0][i], b = x[r][1][i];
        x[r][0][i] = a * cosine[i] - b * sine[i];
        x[r][1][i] = b * cosine[i] + a * sine[i];
      }
    }
  }
};

// The largest number of a row that becomes codes, and whether all are finite: a lane's.
struct Extent {
  float largest = 0;
  bool finite = true;

  template <int kWidth, int kRounds, class Column>
  GPU_DEVICE void Add(const Head<kWidth, kRounds>& head, int half, const Column& column) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int c = Head<kWidth, kRounds>::FirstColumn(r);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (c >= half || column(h * half + c) < 0) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const float size = fabsf(head.x[r][h][i]);
          finite = finite && size < INFINITY;
          largest = fmaxf(largest, size);
        }
      }
    }
  }
  // Of the row: largest / 448; 1 for zeros, NaN when a number is not finite.
  GPU_DEVICE float Scale() const {
    const float most = gpu::WarpMax(largest);
    if (!__all_sync(0xffffffffu, finite)) return __uint_as_float(0x7fc00000u);
    const float scale = most / kLargestE4m3;
    return scale > 0 ? scale : 1.0f;
  }
};

// Writes columns of a token's row in a tile: column(c) says where column c goes, < 0 nowhere.
template <int kWidth, int kRounds, class Column>
GPU_DEVICE void WriteRow(const Head<kWidth, kRounds>& head, const GpuKvLayout& layout,
                         uint8_t* tile, int slot, float scale, const Column& column) {
  const int half = layout.head_dim / 2, bytes = layout.element_bytes();
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int c = Head<kWidth, kRounds>::FirstColumn(r);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int to = c < half ? column(h * half + c) : -1;
      if (to < 0) continue;
      const int byte = to * bytes;
      uint8_t* at = tile + layout.ChunkOffset(slot, byte / 16) + byte % 16;
      if (layout.type == GpuKvType::kBf16) {
        StoreBf16<kWidth>(at, head.x[r][h]);
      } else {
        StoreE4m3<kWidth>(at, head.x[r][h], scale);
      }
    }
  }
}

GPU_DEVICE void WriteZero(const GpuKvLayout& layout, uint8_t* tile, int slot, int column) {
  const int byte = column * layout.element_bytes();
  uint8_t* at = tile + layout.ChunkOffset(slot, byte / 16) + byte % 16;
  if (layout.type == GpuKvType::kBf16) {
    gpu::Store(at, uint16_t{0});
  } else {
    gpu::Store(at, uint8_t{0});
  }
}

// Zeros in the columns of a token's row that belong to no column of the head.
GPU_DEVICE void WritePadding(const GpuKvLayout& layout, uint8_t* tile, int slot) {
  const int lane = threadIdx.x % 32, values = layout.value_columns();
  for (int c = layout.head_dim + lane; c < values; c += 32) WriteZero(layout, tile, slot, c);
  const int kept = layout.format == KvFormat::kSplit ? layout.head_dim : 2 * layout.rotated_pairs;
  if (layout.key_columns() == kept) return;
  for (int c = lane; c < layout.key_columns(); c += 32) {
    if (layout.KeySource(c) < 0) WriteZero(layout, tile, slot, values + c);
  }
}

template <int kWidth, int kRounds>
GPU_DEVICE void FinishQuery(const NormRopeWriteParams& p, int64_t token, int index) {
  const GpuKvLayout& layout = p.layout;
  const int half = layout.head_dim / 2;
  Head<kWidth, kRounds> q;
  q.Load(p.qkv + token * p.qkv_stride + int64_t{index} * layout.head_dim, half);
  if (p.q_norm != nullptr) q.Scale(half, q.InverseNorm(half, p.eps), p.q_norm);
  q.Turn(p.cos_sin + token * 2 * p.pairs, p.pairs);
  q.Scale(half, p.query_scale, nullptr);

  __nv_bfloat16* packed = p.query + (token * p.q_heads + index) * layout.score_columns();
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int first = q.FirstColumn(r);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (first >= half) continue;
      const int c = h * half + first;
      int place = layout.QueryPlace(c);
      if (place < 0) {
        place = -1 - place;
        float w[kWidth];
        LoadRow<kWidth>(p.key_weight + c, w);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) q.x[r][h][i] *= w[i];
      }
      StoreBf16<kWidth>(packed + place, q.x[r][h]);
    }
  }
  if (layout.QueryHasGaps()) {
    for (int place = threadIdx.x % 32; place < layout.score_columns(); place += 32) {
      if (layout.QuerySource(place) < 0) gpu::Store(packed + place, uint16_t{0});
    }
  }
}

template <int kWidth, int kRounds>
GPU_DEVICE void FinishKeyValue(const NormRopeWriteParams& p, int64_t token, int index, int page) {
  const GpuKvLayout& layout = p.layout;
  const int half = layout.head_dim / 2, slot = p.positions[token] % kPageTokens;
  const __nv_bfloat16* raw =
      p.qkv + token * p.qkv_stride + int64_t{p.q_heads + index} * layout.head_dim;
  Head<kWidth, kRounds> k, v;
  k.Load(raw, half);
  if (p.k_eq_v) {
    v = k;
  } else {
    v.Load(raw + int64_t{p.kv_heads} * layout.head_dim, half);
  }
  if (p.v_norm) v.Scale(half, v.InverseNorm(half, p.eps), nullptr);
  if (p.k_norm != nullptr) k.Scale(half, k.InverseNorm(half, p.eps), p.k_norm);
  k.Turn(p.cos_sin + token * 2 * p.pairs, p.pairs);

  uint8_t* tile =
      p.pool + page * p.page_bytes + p.layer_offset + int64_t{index} * layout.head_bytes();
  const auto key_column = [&](int c) { return layout.KeyColumn(c); };
  const auto value_column = [](int c) { return c; };
  float key_scale = 1, value_scale = 1;
  if (layout.type == GpuKvType::kE4m3) {
    Extent keys, values;
    keys.Add(k, half, key_column);
    values.Add(v, half, value_column);
    if (layout.format == KvFormat::kFolded) {
      values.Add(k, half, key_column);
      keys = values;
    }
    key_scale = keys.Scale();
    value_scale = values.Scale();
    float* scales = reinterpret_cast<float*>(tile + layout.tile_bytes());
    if (threadIdx.x % 32 == 0) {
      gpu::Store(scales + slot, key_scale);
      gpu::Store(scales + kPageTokens + slot, value_scale);
    }
  }
  WriteRow(k, layout, tile, slot, key_scale, key_column);
  WriteRow(v, layout, tile, slot, value_scale, value_column);
  WritePadding(layout, tile, slot);
}

template <int kWidth, int kRounds>
__global__ void __launch_bounds__(kWarps * 32)
    NormRopeWriteKernel(const __grid_constant__ NormRopeWriteParams p) {
  const int64_t token = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32);
  if (head >= p.q_heads + p.kv_heads) return;
  const int page = p.page_of != nullptr ? p.page_of[token] : 0;
  if (page < 0) return;
  if (head < p.q_heads) {
    FinishQuery<kWidth, kRounds>(p, token, head);
  } else {
    FinishKeyValue<kWidth, kRounds>(p, token, head - p.q_heads, page);
  }
}

// The widest packet that keeps all lanes busy, divides what must not be cut, and is aligned
// everywhere. Four columns: 16 bytes of a weight or an angle, of which there are more than of
// heads; with eight a lane's two accesses would each touch every sector of the other.
int PacketWidth(const NormRopeWriteParams& p) {
  const int half = p.layout.head_dim / 2;
  const auto aligned = [](const void* at, int bytes) {
    return reinterpret_cast<uintptr_t>(at) % bytes == 0;
  };
  for (int width = 4; width > 1; width /= 2) {
    const int row = 2 * width, number = 4 * width;
    if (half >= 32 * width && half % width == 0 && p.pairs % width == 0 &&
        p.qkv_stride % width == 0 && aligned(p.qkv, row) && aligned(p.query, row) &&
        aligned(p.q_norm, number) && aligned(p.k_norm, number) && aligned(p.key_weight, number) &&
        aligned(p.cos_sin, number)) {
      return width;
    }
  }
  return 1;
}

bool Valid(const NormRopeWriteParams& p) {
  const int d = p.layout.head_dim;
  if (d <= 0 || d % 2 != 0 || d > 1024 || p.tokens < 0 || p.tokens > INT32_MAX) return false;
  if (p.q_heads < 0 || p.kv_heads < 0 || p.q_heads + p.kv_heads == 0) return false;
  if (p.pairs < 0 || p.pairs > d / 2) return false;
  if (p.kv_heads > 0 && (p.page_bytes % 16 != 0 || p.layer_offset % 16 != 0)) return false;
  if (p.layout.format == KvFormat::kFolded) {
    if (p.layout.rotated_pairs != p.pairs || p.key_weight == nullptr) return false;
  } else if (p.layout.format != KvFormat::kSplit) {
    return false;
  }
  return true;
}

}  // namespace

cudaError_t LaunchNormRopeWrite(const NormRopeWriteParams& p, cudaStream_t stream) {
  if (!Valid(p)) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  const unsigned blocks_of_heads = (p.q_heads + p.kv_heads + kWarps - 1) / kWarps;
  const gpu::LaunchConfig config{.name = "norm_rope_write",
                                 .grid = dim3(static_cast<unsigned>(p.tokens), blocks_of_heads),
                                 .block = dim3(kWarps * 32),
                                 .stream = stream};
  const int half = p.layout.head_dim / 2;
  switch (PacketWidth(p)) {
    case 4:
      return half <= 256 ? gpu::Launch(NormRopeWriteKernel<4, 2>, config, p)
                         : gpu::Launch(NormRopeWriteKernel<4, 4>, config, p);
    case 2:
      return half <= 128 ? gpu::Launch(NormRopeWriteKernel<2, 2>, config, p)
                         : gpu::Launch(NormRopeWriteKernel<2, 8>, config, p);
    default:
      return half <= 64 ? gpu::Launch(NormRopeWriteKernel<1, 2>, config, p)
                        : gpu::Launch(NormRopeWriteKernel<1, 16>, config, p);
  }
}

}  // namespace lapidary
