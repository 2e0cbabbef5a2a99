// The block formats of GGUF, 32 elements at a time.
//
// Compiled without contraction to FMA (CMakeLists.txt): the K formats' d * q - m rounds twice, as
// in the reference, so the values agree with it bit for bit.
#include <cstring>

#include "common/base/check.h"
#include "common/base/half.h"
#include "model/checkpoint.h"

namespace lapidary {
namespace {

constexpr int kGroup = 32;

uint16_t LoadU16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
uint32_t LoadU32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// 32 neighbours in a row: value = scale * (code - zero) - min. scale[1] and the second half differ
// only for Q6_K.
struct Group {
  uint8_t codes[kGroup];
  float scale[2];
  float min;
};

void LowThenHighNibbles(const uint8_t* packed, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = packed[i] & 15;
    codes[i + 16] = packed[i] >> 4;
  }
}

void DecodeQ8_0(const uint8_t* block, Group& out) {
  out.scale[0] = out.scale[1] = FromFp16(LoadU16(block));
  for (int i = 0; i < kGroup; ++i) out.codes[i] = block[2 + i] ^ 0x80;  // int8 + 128
}

void DecodeQ4_0(const uint8_t* block, Group& out) {
  out.scale[0] = out.scale[1] = FromFp16(LoadU16(block));
  LowThenHighNibbles(block + 2, out.codes);
}

void DecodeQ5_0(const uint8_t* block, Group& out) {
  out.scale[0] = out.scale[1] = FromFp16(LoadU16(block));
  const uint32_t high = LoadU32(block + 2);
  LowThenHighNibbles(block + 6, out.codes);
  for (int i = 0; i < kGroup; ++i) out.codes[i] |= ((high >> i) & 1) << 4;
}

// Eight 6-bit scales and mins in 12 bytes: the first four of each in the low 6 bits of bytes 0 to
// 7, the others' low nibbles in bytes 8 to 11 and their upper two bits on top of bytes 0 to 7.
void KScaleAndMin(const uint8_t* packed, int group, int* scale, int* min) {
  if (group < 4) {
    *scale = packed[group] & 63;
    *min = packed[group + 4] & 63;
  } else {
    *scale = (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4);
    *min = (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4);
  }
}

void KScales(const uint8_t* block, int group, Group& out) {
  int scale, min;
  KScaleAndMin(block + 4, group, &scale, &min);
  out.scale[0] = out.scale[1] = FromFp16(LoadU16(block)) * static_cast<float>(scale);
  out.min = FromFp16(LoadU16(block + 2)) * static_cast<float>(min);
}

void KNibbles(const uint8_t* nibbles, int group, uint8_t* codes) {
  const uint8_t* const packed = nibbles + group / 2 * kGroup;
  const int shift = group % 2 * 4;
  for (int i = 0; i < kGroup; ++i) codes[i] = (packed[i] >> shift) & 15;
}

void DecodeQ4K(const uint8_t* block, int group, Group& out) {
  KScales(block, group, out);
  KNibbles(block + 16, group, out.codes);
}

void DecodeQ5K(const uint8_t* block, int group, Group& out) {
  KScales(block, group, out);
  KNibbles(block + 48, group, out.codes);
  const uint8_t* const high = block + 16;  // bit g of byte i: element i of group g
  for (int i = 0; i < kGroup; ++i) out.codes[i] |= ((high[i] >> group) & 1) << 4;
}

void DecodeQ6K(const uint8_t* block, int group, Group& out) {
  const int half = group / 4, quarter = group % 4;
  const uint8_t* const low = block + half * 64 + quarter % 2 * kGroup;
  const uint8_t* const high = block + 128 + half * kGroup;
  const int8_t* const scales = reinterpret_cast<const int8_t*>(block + 192) + group * 2;
  const float d = FromFp16(LoadU16(block + 208));
  for (int s = 0; s < 2; ++s) out.scale[s] = d * static_cast<float>(scales[s]);
  const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
  for (int i = 0; i < kGroup; ++i) {
    const int code = ((low[i] >> low_shift) & 15) | (((high[i] >> high_shift) & 3) << 4);
    out.codes[i] = static_cast<uint8_t>(code + 96);  // zero 32 becomes zero 128
  }
}

int ZeroPoint(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
    case DType::kQ6K:
      return 128;
    case DType::kQ4_0:
      return 8;
    case DType::kQ5_0:
      return 16;
    case DType::kQ4K:
    case DType::kQ5K:
      return 0;
    case DType::kF32:
    case DType::kF16:
    case DType::kBf16:
      break;
  }
  return 0;
}

// Elements [index * 32, index * 32 + 32) of a row.
void DecodeGroup(DType dtype, const uint8_t* row, int64_t index, Group& out) {
  const DTypeInfo& info = Info(dtype);
  const int groups = info.block_elements / kGroup;
  const uint8_t* const block = row + index / groups * info.block_bytes;
  const int group = static_cast<int>(index % groups);
  out.min = 0;
  switch (dtype) {
    case DType::kQ8_0:
      return DecodeQ8_0(block, out);
    case DType::kQ4_0:
      return DecodeQ4_0(block, out);
    case DType::kQ5_0:
      return DecodeQ5_0(block, out);
    case DType::kQ4K:
      return DecodeQ4K(block, group, out);
    case DType::kQ5K:
      return DecodeQ5K(block, group, out);
    case DType::kQ6K:
      return DecodeQ6K(block, group, out);
    case DType::kF32:
    case DType::kF16:
    case DType::kBf16:
      break;
  }
  LAPIDARY_CHECK(false && "not a block format");
}

}  // namespace

void Dequantize(DType dtype, const uint8_t* row, int64_t begin, int64_t end, float* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, row + begin * 4, static_cast<size_t>(end - begin) * 4);
      return;
    case DType::kF16:
      for (int64_t i = begin; i < end; ++i) out[i - begin] = FromFp16(LoadU16(row + i * 2));
      return;
    case DType::kBf16:
      for (int64_t i = begin; i < end; ++i) out[i - begin] = FromBf16(LoadU16(row + i * 2));
      return;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ5_0:
    case DType::kQ4K:
    case DType::kQ5K:
    case DType::kQ6K:
      break;
  }
  LAPIDARY_CHECK(begin % kGroup == 0 && end % kGroup == 0);
  const int zero = ZeroPoint(dtype);
  const bool has_min = dtype == DType::kQ4K || dtype == DType::kQ5K;
  Group group;
  for (int64_t g = begin / kGroup; g < end / kGroup; ++g) {
    DecodeGroup(dtype, row, g, group);
    float* const values = out + g * kGroup - begin;
    for (int i = 0; i < kGroup; ++i) {
      values[i] = group.scale[i / 16] * static_cast<float>(group.codes[i] - zero);
    }
    if (!has_min) continue;
    for (int i = 0; i < kGroup; ++i) values[i] -= group.min;
  }
}

void DecodeBlocks(DType dtype, const uint8_t* row, int64_t begin, int64_t end, uint8_t* codes,
                  float* scales, float* mins) {
  LAPIDARY_CHECK(IsQuantized(dtype) && begin % kGroup == 0 && end % kGroup == 0);
  const int scales_per_group = dtype == DType::kQ6K ? 2 : 1;
  Group group;
  for (int64_t g = begin / kGroup; g < end / kGroup; ++g) {
    DecodeGroup(dtype, row, g, group);
    const int64_t index = g - begin / kGroup;
    std::memcpy(codes + index * kGroup, group.codes, kGroup);
    for (int s = 0; s < scales_per_group; ++s) {
      scales[index * scales_per_group + s] = group.scale[s];
      mins[index * scales_per_group + s] = group.min;
    }
  }
}

}  // namespace lapidary
