#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/gemm/matmul.h"

namespace lapidary {

namespace {

// Best of several products that stay in the caches: what the instruction can do, not the memory.
double BestSeconds(ThreadTeam& team, const PackedWeight& w, const ActivationRows& x, float* y) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int i = 0; i < 8; ++i) {
    const Clock::time_point begin = Clock::now();
    Matmul(team, w, x, y, w.n);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

Arithmetic FasterForBf16(ThreadTeam& team) {
  if (!Supported(Arithmetic::kDotBf16)) return BestFma();
  constexpr int64_t kRows = 24, kK = 256;
  const int64_t n = int64_t{64} * team.size();
  const PackedWeight w(WeightFormat::kBf16, n, kK);
  if (w.data.data() == nullptr) return BestFma();
  const std::vector<float> x(kRows * kK, 1.0f);
  std::vector<float> y(kRows * n);
  ActivationRows fma, dot;
  fma.Set(team, x.data(), kRows, kK, kK, BestFma(), true);
  dot.Set(team, x.data(), kRows, kK, kK, Arithmetic::kDotBf16, true);
  const double fma_seconds = BestSeconds(team, w, fma, y.data());
  const double dot_seconds = BestSeconds(team, w, dot, y.data());
  return dot_seconds < fma_seconds ? Arithmetic::kDotBf16 : BestFma();
}

}  // namespace

std::optional<Arithmetic> ResolveArithmetic(ThreadTeam& team, ComputeType compute,
                                            std::string_view name) {
  if (name != "auto") {
    const std::optional<Arithmetic> named = ParseArithmetic(name);
    if (!named || !Supported(*named) || !Fits(*named, compute)) return std::nullopt;
    return named;
  }
  switch (compute) {
    case ComputeType::kFp32:
      return BestFma();
    case ComputeType::kBf16:
      return FasterForBf16(team);
    case ComputeType::kInt8:
      return BestInt8();
    case ComputeType::kFp8:  // the GPUs'
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace lapidary
