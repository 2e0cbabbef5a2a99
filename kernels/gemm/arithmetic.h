// Which instruction multiplies, what this CPU has, and how a group chooses one.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "common/base/dtype.h"
#include "kernels/gemm/packed_weight.h"
#include "kernels/thread_team.h"

namespace lapidary {

// Resolved once per group and part of the determinism key: kInt8*, kFma* and kDotBf16 are three
// arithmetics; within the first two, instruction sets give the same bits.
enum class Arithmetic : uint8_t {
  kInt8Amx,     // AMX where it is faster than VNNI, which does the rest; the same bits
  kInt8Vnni,    // AVX-512 VNNI, the quantised formats
  kInt8Avx512,  // AVX-512 without VNNI: the same integers, so the same bits as kInt8Vnni
  kInt8Avx2,    // AVX2: again the same bits
  kFmaAvx512,   // fp32 FMA over fp32 or bf16 weights
  kFmaAvx2,     // the same bits as kFmaAvx512
  kDotBf16,     // vdpbf16ps
};
inline constexpr int kArithmetics = 7;

// "int8-amx", "int8-vnni", "int8-avx512", "int8-avx2", "fma-avx512", "fma-avx2", "dot-bf16".
const char* Name(Arithmetic arithmetic);
std::optional<Arithmetic> ParseArithmetic(std::string_view name);

// By this CPU and its system. The first question about kInt8Amx asks the system, for the whole
// process, to let it use the tile registers.
bool Supported(Arithmetic arithmetic);
bool Fits(Arithmetic arithmetic, WeightFormat format);
bool Fits(Arithmetic arithmetic, ComputeType compute);

inline bool IsInt8(Arithmetic a) { return a <= Arithmetic::kInt8Avx2; }

// The best of this CPU.
Arithmetic BestInt8();
Arithmetic BestFma();

// The arithmetic of a group. "auto": the best of this CPU; where it has both vdpbf16ps and FMA, or
// AMX and VNNI, a timing of about a millisecond on the team decides (which of the former is faster
// differs from chip to chip, by up to 2). Else the named one; nullopt when the name is unknown,
// this CPU lacks it, or it does not fit the compute type. Matrices that an int8 group keeps in
// float use BestFma().
std::optional<Arithmetic> ResolveArithmetic(ThreadTeam& team, ComputeType compute,
                                            std::string_view name);

}  // namespace lapidary
