#include "kernels/gemm/arithmetic.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace lapidary {

namespace {
constexpr const char* kNames[kArithmetics] = {"int8-amx",   "int8-vnni", "int8-avx512", "int8-avx2",
                                              "fma-avx512", "fma-avx2",  "dot-bf16"};

bool Avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// Linux lets a process use the tile registers on request (its Documentation/arch/x86/xstate.rst). A
// kernel or hypervisor without them refuses, as it does when a signal stack is too small for them.
bool AmxPermitted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAmxTile) == 0 || (d & kAmxInt8) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
}  // namespace

const char* Name(Arithmetic arithmetic) { return kNames[static_cast<int>(arithmetic)]; }

std::optional<Arithmetic> ParseArithmetic(std::string_view name) {
  for (int i = 0; i < kArithmetics; ++i) {
    if (name == kNames[i]) return static_cast<Arithmetic>(i);
  }
  return std::nullopt;
}

bool Supported(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kInt8Amx: {
      static const bool supported =
          Supported(Arithmetic::kInt8Vnni) && __builtin_cpu_supports("gfni") && AmxPermitted();
      return supported;
    }
    case Arithmetic::kInt8Vnni:
      return Avx512() && __builtin_cpu_supports("avx512vnni");
    case Arithmetic::kInt8Avx512:
    case Arithmetic::kFmaAvx512:
      return Avx512();
    case Arithmetic::kInt8Avx2:
    case Arithmetic::kFmaAvx2:
      return true;  // the project's baseline
    case Arithmetic::kDotBf16:
      return Avx512() && __builtin_cpu_supports("avx512bf16");
  }
  return false;
}

bool Fits(Arithmetic arithmetic, WeightFormat format) {
  if (IsInt8(arithmetic)) return IsQuantized(format);
  if (arithmetic == Arithmetic::kDotBf16) return format == WeightFormat::kBf16;
  return !IsQuantized(format);
}

bool Fits(Arithmetic arithmetic, ComputeType compute) {
  switch (compute) {
    case ComputeType::kFp32:
      return !IsInt8(arithmetic) && arithmetic != Arithmetic::kDotBf16;
    case ComputeType::kBf16:
      return !IsInt8(arithmetic);
    case ComputeType::kInt8:
      return IsInt8(arithmetic);
    case ComputeType::kFp8:  // the GPUs'
      return false;
  }
  return false;
}

Arithmetic BestInt8() {
  for (Arithmetic a : {Arithmetic::kInt8Amx, Arithmetic::kInt8Vnni, Arithmetic::kInt8Avx512}) {
    if (Supported(a)) return a;
  }
  return Arithmetic::kInt8Avx2;
}

Arithmetic BestFma() {
  return Supported(Arithmetic::kFmaAvx512) ? Arithmetic::kFmaAvx512 : Arithmetic::kFmaAvx2;
}

}  // namespace lapidary
