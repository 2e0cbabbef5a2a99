#include "kernels/sampling/philox.h"

#include <gtest/gtest.h>

#include <set>

namespace lapidary {
namespace {

// Random123's known answers for philox4x32 with 10 rounds (kat_vectors).
TEST(Philox, PublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kAll = 0xffffffff;
  EXPECT_EQ(Philox4x32({kAll, kAll, kAll, kAll}, {kAll, kAll}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformsTakeTheirBitsFromTheFirstWords) {
  const uint64_t seed = 0x299f31d0a4093822u;
  const std::array<uint32_t, 4> words = Philox4x32({17, 3, 0, 0}, {0xa4093822u, 0x299f31d0u});
  EXPECT_EQ(UniformBits(seed, 17, 3, RandomPurpose::kSample), uint64_t{words[0]} << 32 | words[1]);
  const float uniform = UniformFloat(seed, 17, 3, RandomPurpose::kSample);
  EXPECT_EQ(uniform, static_cast<float>(words[0] >> 8) / 16777216.0f);
  EXPECT_LT(uniform, 1.0f);
}

TEST(Philox, EveryPartOfTheCounterAndTheKeyMatters) {
  std::set<uint64_t> seen;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    for (uint32_t position = 0; position < 3; ++position) {
      for (uint32_t choice = 0; choice < 3; ++choice) {
        seen.insert(UniformBits(seed, position, choice, RandomPurpose::kSample));
      }
    }
  }
  EXPECT_EQ(seen.size(), 27u);
}

}  // namespace
}  // namespace lapidary
