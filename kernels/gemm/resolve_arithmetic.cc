#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/gemm/matmul.h"

namespace lapidary {

namespace {

// What to time a product on; it stays in the caches: what the instructions can do, not the memory.
struct Trial {
  WeightFormat format;
  int64_t rows, k;
  int64_t n;  // for each thread
};

Arithmetic Faster(ThreadTeam& team, const Trial& trial, Arithmetic a, Arithmetic b) {
  using Clock = std::chrono::steady_clock;
  const int64_t n = trial.n * team.size();
  const PackedWeight w(trial.format, n, trial.k);
  if (w.data.data() == nullptr) return a;
  const std::vector<float> x(trial.rows * trial.k, 1.0f);
  std::vector<float> y(trial.rows * n);
  ActivationRows rows[2];
  for (int i = 0; i < 2; ++i) {
    rows[i].Set(team, x.data(), trial.rows, trial.k, trial.k, i == 0 ? a : b, !IsInt8(a));
  }
  double seconds[2] = {1e30, 1e30};
  for (int turn = 0; turn < 16; ++turn) {  // by turns: a neighbour meets both alike
    const Clock::time_point begin = Clock::now();
    Matmul(team, w, rows[turn % 2], y.data(), n);
    double& best = seconds[turn % 2];
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return seconds[1] < seconds[0] ? b : a;
}

Arithmetic ChooseForBf16(ThreadTeam& team) {
  if (!Supported(Arithmetic::kDotBf16)) return BestFma();
  return Faster(team, {WeightFormat::kBf16, 24, 256, 64}, BestFma(), Arithmetic::kDotBf16);
}

Arithmetic ChooseForInt8(ThreadTeam& team) {
  if (!Supported(Arithmetic::kInt8Amx)) return BestInt8();
  return Faster(team, {WeightFormat::kQ8, 64, 512, 256}, Arithmetic::kInt8Amx,
                Arithmetic::kInt8Vnni);
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
      return ChooseForBf16(team);
    case ComputeType::kInt8:
      return ChooseForInt8(team);
    case ComputeType::kFp8:  // the GPUs'
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace lapidary
