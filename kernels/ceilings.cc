#include "kernels/ceilings.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "kernels/internal/ceiling_loops.h"

namespace lapidary {

namespace {

double BestSeconds(ThreadTeam& team, int rounds, const std::function<void(int)>& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    const Clock::time_point begin = Clock::now();
    team.Run(work);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

struct Loop {
  void (*run)();
  int operations;  // per chain and step
};
constexpr Loop kLoops[kArithmetics] = {
    {LoopAmx, 512},      {LoopVnni, 128},   {LoopMaddAvx512, 128}, {LoopMaddAvx2, 64},
    {LoopFmaAvx512, 32}, {LoopFmaAvx2, 16}, {LoopDotBf16, 64}};

}  // namespace

double MeasureRead(ThreadTeam& team, const uint8_t* begin, int64_t bytes, int rounds) {
  const int64_t part = bytes / team.size() / 256 * 256;
  return 1e-9 * static_cast<double>(part * team.size()) /
         BestSeconds(team, rounds, [&](int t) { ReadAvx2(begin + t * part, part); });
}

Ceilings MeasureCeilings(ThreadTeam& team, const uint8_t* buffer, int64_t bytes, int rounds) {
  Ceilings ceilings;
  // In pieces of 2 ms, so that a neighbour's time slice spoils some of them and not all.
  const int64_t piece = std::min(bytes, int64_t{64} << 20);
  for (int round = 0; round < rounds; ++round) {
    for (int64_t at = 0; at + piece <= bytes; at += piece) {
      ceilings.read_gbs = std::max(ceilings.read_gbs, MeasureRead(team, buffer + at, piece, 1));
    }
  }
  for (int i = 0; i < kArithmetics; ++i) {
    if (!Supported(static_cast<Arithmetic>(i))) continue;
    const double operations =
        static_cast<double>(kCeilingSteps * kCeilingChains) * kLoops[i].operations * team.size();
    ceilings.gops[i] =
        1e-9 * operations / BestSeconds(team, 10 * rounds, [i](int) { kLoops[i].run(); });
  }
  return ceilings;
}

}  // namespace lapidary
