// Random blocks of the GGUF formats, for tests: any codes, scales of ordinary size.
#pragma once
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "common/base/dtype.h"
#include "common/base/half.h"

namespace lapidary {

// rows x columns values of a type; columns a whole number of blocks. `scale`: size of a block's
// scale.
inline std::vector<uint8_t> RandomBlocks(DType dtype, int64_t rows, int64_t columns, float scale,
                                         uint32_t seed) {
  std::mt19937 rng(seed);
  const DTypeInfo& info = Info(dtype);
  std::vector<uint8_t> blocks(rows * columns / info.block_elements * info.block_bytes);
  for (uint8_t& b : blocks) b = static_cast<uint8_t>(rng());
  const auto put = [&](uint8_t* at, float v) {
    const uint16_t half = ToFp16(v);
    std::memcpy(at, &half, 2);
  };
  for (size_t at = 0; at < blocks.size(); at += info.block_bytes) {
    const float d = scale * (0.5f + static_cast<float>(rng() % 1024) / 1024);
    if (dtype == DType::kQ6K) {
      put(&blocks[at + 208], d / 32);
    } else if (dtype == DType::kQ4K || dtype == DType::kQ5K) {
      put(&blocks[at], d / 32);
      put(&blocks[at + 2], d / 8);
    } else {
      put(&blocks[at], d);
    }
  }
  return blocks;
}

}  // namespace lapidary
