#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/base/half.h"
#include "kernels/gemm/internal/activations.h"
#include "kernels/gemm/internal/tile_amx.h"

namespace lapidary {

namespace {

constexpr float kTiny = 1e-30f;  // 127 / kTiny is still finite

// Below this many values the barrier costs more than it brings.
constexpr int64_t kValuesWorthThreads = 8192;
// Rows of a thread from which those that share lines with its neighbours are few.
constexpr int64_t kRowsWorthThreads = 32;

// Blocks of 32 values that lie in x, or in a zero-padded copy of the last ones.
class BlockReader {
 public:
  BlockReader(const float* x, int64_t k, int64_t x_stride) : x_(x), k_(k), x_stride_(x_stride) {}
  const float* Get(int64_t row, int64_t block) {
    const float* at = x_ + row * x_stride_ + block * kBlockK;
    const int64_t count = std::min<int64_t>(kBlockK, k_ - block * kBlockK);
    if (count == kBlockK) return at;
    std::fill(padded_, padded_ + kBlockK, 0.0f);
    std::copy(at, at + count, padded_);
    return padded_;
  }

 private:
  const float* x_;
  int64_t k_, x_stride_;
  alignas(64) float padded_[kBlockK];
};

int32_t MaxLane(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}
int32_t SumLanes(__m256i v) {
  __m128i m = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}

// Codes, scale and starts of one block of kVectors * 8 values. The codes are those of the
// unshortened scale: the shortening, 2^-22 at most, is far below the rounding to 8 bits.
template <int kVectors>
void QuantizeBlock(const float* in, int64_t at, Int8Rows& out) {
  __m256 v[kVectors];
  // Magnitudes compared as integers: the order of the floats, with NaN above infinity.
  __m256i biggest = _mm256_setzero_si256();
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int i = 0; i < kVectors; ++i) {
    v[i] = _mm256_loadu_ps(in + i * 8);
    biggest = _mm256_max_epi32(biggest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
  }
  const float amax = std::bit_cast<float>(MaxLane(biggest));
  const bool zero = amax < kTiny;
  const float inverse = zero ? 0.0f : 127.0f / amax;
  // Two mantissa bits cleared, so that 3 * 2^22 * scale is exact in fp32.
  const float scale =
      zero ? 0.0f : std::bit_cast<float>(std::bit_cast<uint32_t>(amax / 127.0f) & ~3u);

  __m256i codes[kVectors], sum = _mm256_setzero_si256();
  for (int i = 0; i < kVectors; ++i) {
    codes[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
    sum = _mm256_add_epi32(sum, codes[i]);
  }
  auto* bytes = out.x.data() + at * (kVectors * 8);
  const __m256i low = _mm256_packs_epi32(codes[0], codes[1]);
  if constexpr (kVectors == 4) {
    const __m256i packed = _mm256_packs_epi16(low, _mm256_packs_epi32(codes[2], codes[3]));
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(bytes),
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  } else {
    const __m256i packed = _mm256_packs_epi16(low, low);
    const __m256i ordered =
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm256_castsi256_si128(ordered));
  }
  const int32_t total = SumLanes(sum);
  auto* starts = reinterpret_cast<int32_t*>(out.starts.data()) + at;
  // Unsigned: the codes of a block with NaN are 2^31, and its scale makes the row NaN anyway.
  auto start = [total](int zero_point) {
    return static_cast<int32_t>(uint32_t{kMagicBits} -
                                static_cast<uint32_t>(zero_point) * static_cast<uint32_t>(total));
  };
  for (size_t z = 0; z < kPlaneZeroPoints.size(); ++z) {
    starts[z * out.row_blocks] = start(kPlaneZeroPoints[z]);
  }
  reinterpret_cast<BlockScale*>(out.scales.data())[at] = {
      scale, -kMagic * scale, scale * static_cast<float>(total), start(128)};
}

// Rows from one block to the next: 2 modulo 4, so that the int8 blocks of a row are an odd number
// of cache lines apart and do not all fall into the same sets of L1, as they would with 512 rows.
int64_t RowStride(int64_t rows) { return rows < 8 ? rows : rows + (6 - rows % 4) % 4; }

void Size(Int8Rows& out, bool used, int64_t rows, int64_t k, int block) {
  out.set = used;
  if (!used) return;
  out.row_blocks = rows * (k / block);
  EnsureBytes(out.x, rows * k + kAmxRowsBeyond * block);
  EnsureBytes(out.scales, (out.row_blocks + kAmxRowsBeyond) * sizeof(BlockScale));
  EnsureBytes(out.starts, out.row_blocks * sizeof(int32_t) * kPlaneZeroPoints.size());
}

void StoreBf16(const float* in, uint16_t* out) {
  for (int i = 0; i < kBlockK; ++i) out[i] = ToBf16(in[i]);
}
void StoreRounded(const float* in, float* out) {
  for (int i = 0; i < kBlockK; ++i) out[i] = RoundToBf16(in[i]);
}

}  // namespace

const int32_t* Int8Rows::start(int zero_point) const {
  for (size_t z = 0; z < kPlaneZeroPoints.size(); ++z) {
    if (kPlaneZeroPoints[z] == zero_point) {
      return reinterpret_cast<const int32_t*>(starts.data()) + z * row_blocks;
    }
  }
  return nullptr;
}

ActivationRows::ActivationRows() : impl_(std::make_unique<Impl>()) {}
ActivationRows::~ActivationRows() = default;
ActivationRows::ActivationRows(ActivationRows&&) noexcept = default;
ActivationRows& ActivationRows::operator=(ActivationRows&&) noexcept = default;

void ActivationRows::Set(ThreadTeam& team, const float* x, int64_t rows, int64_t k,
                         int64_t x_stride, Arithmetic arithmetic, bool round_to_bf16,
                         ActivationBlocks blocks) {
  Impl& impl = *impl_;
  impl.arithmetic = arithmetic;
  impl.rows = rows;
  impl.row_stride = RowStride(rows);
  impl.k = k;
  impl.padded_k = (k + kBlockK - 1) / kBlockK * kBlockK;
  const bool int8 = IsInt8(arithmetic);
  Size(impl.by32, int8 && blocks != ActivationBlocks::k16, impl.row_stride, impl.padded_k, 32);
  Size(impl.by16, int8 && blocks != ActivationBlocks::k32, impl.row_stride, impl.padded_k, 16);
  if (!int8) EnsureBytes(impl.floats, impl.row_stride * impl.padded_k * sizeof(float));

  // Blocks [begin, end) of rows [first, last), row by row: x is read in streams (down the columns
  // every block of a wide matrix would be another page), and the two rows that share a line of int8
  // follow each other.
  const int64_t row_blocks = impl.padded_k / kBlockK, stride = impl.row_stride;
  auto convert = [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
    BlockReader reader(x, k, x_stride);
    for (int64_t row = first; row < last; ++row) {
      for (int64_t b = begin; b < end; ++b) {
        const float* in = reader.Get(row, b);
        const int64_t at = b * stride + row;
        if (impl.by32.set) QuantizeBlock<4>(in, at, impl.by32);
        if (impl.by16.set) {
          QuantizeBlock<2>(in, 2 * b * stride + row, impl.by16);
          QuantizeBlock<2>(in + 16, (2 * b + 1) * stride + row, impl.by16);
        }
        if (arithmetic == Arithmetic::kDotBf16) {
          StoreBf16(in, reinterpret_cast<uint16_t*>(impl.floats.data()) + at * kBlockK);
        } else if (!int8 && round_to_bf16) {
          StoreRounded(in, reinterpret_cast<float*>(impl.floats.data()) + at * kBlockK);
        } else if (!int8) {
          memcpy(impl.floats.data() + at * kBlockK * sizeof(float), in, kBlockK * sizeof(float));
        }
      }
    }
  };
  if (rows * impl.padded_k < kValuesWorthThreads) {
    convert(0, rows, 0, row_blocks);
    return;
  }
  // The rows of a block share cache lines, which two threads would take from each other (four times
  // the time at 16 rows): few rows are split by blocks.
  team.Run([&](int t) {
    const auto begin = [&](int64_t total) { return ThreadTeam::Begin(total, t, team.size()); };
    const auto end = [&](int64_t total) { return ThreadTeam::Begin(total, t + 1, team.size()); };
    if (rows >= kRowsWorthThreads * team.size()) {
      convert(begin(rows), end(rows), 0, row_blocks);
    } else {
      convert(0, rows, begin(row_blocks), end(row_blocks));
    }
  });
}

}  // namespace lapidary
