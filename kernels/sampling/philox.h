// Philox4x32-10, the counter-based random generator (Salmon et al., SC 2011).
//
// Key: the request's 64-bit seed. Counter: (absolute position, choice index, purpose, token id or
// 0). So a token depends on its request alone, never on who computes it or what runs beside it.
#pragma once
#include <array>
#include <cstdint>

namespace lapidary {

enum class RandomPurpose : uint32_t { kSample = 0 };

inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1), 24 bits.
inline float UniformFloat(uint64_t seed, uint32_t position, uint32_t choice,
                          RandomPurpose purpose) {
  const std::array<uint32_t, 4> bits =
      Philox4x32({position, choice, static_cast<uint32_t>(purpose), 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<float>(bits[0] >> 8) * 0x1p-24f;
}

// 64 uniform bits: as a fraction of 2^64, fine enough for an integer mass of 2^62.
inline uint64_t UniformBits(uint64_t seed, uint32_t position, uint32_t choice,
                            RandomPurpose purpose) {
  const std::array<uint32_t, 4> bits =
      Philox4x32({position, choice, static_cast<uint32_t>(purpose), 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{bits[0]} << 32 | bits[1];
}

}  // namespace lapidary
