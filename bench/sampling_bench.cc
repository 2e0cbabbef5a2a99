// One step's selection over Gemma's vocabulary: CSV of rows, what, median, GB/s.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "kernels/ceilings.h"
#include "kernels/huge_buffer.h"
#include "kernels/sampling/topk.h"

int main() {
  using namespace lapidary;
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kVocabulary = 262144, kMaxRows = 32;
  std::vector<int> cpus(std::max(1u, std::thread::hardware_concurrency()));
  for (size_t i = 0; i < cpus.size(); ++i) cpus[i] = static_cast<int>(i);
  const auto team = ThreadTeam::Create(0, cpus);
  const HugeBuffer buffer(kMaxRows * kVocabulary * 4);
  auto* logits = reinterpret_cast<float*>(buffer.data());
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(-5, 4);
  for (int64_t i = 0; i < kMaxRows * kVocabulary; ++i) logits[i] = normal(rng);
  printf("# these %zu bytes read at %.1f GB/s\n", buffer.bytes(),
         MeasureRead(*team, buffer.data(), static_cast<int64_t>(buffer.bytes()), 50));
  printf("rows,top k,norm,median_us,GB/s\n");
  struct What {
    int top_k;
    bool norm;
  };
  for (int64_t rows : {1, 16, 32}) {
    for (const What& what : {What{1, false}, What{64, false}, What{1024, false}, What{64, true}}) {
      std::vector<RowSelection> selections(rows);
      for (int64_t r = 0; r < rows; ++r) {
        selections[r].logits = logits + r * kVocabulary;
        selections[r].n = kVocabulary;
        selections[r].top_k = what.top_k;
        selections[r].wants_norm = what.norm;
      }
      std::vector<double> seconds;
      for (int i = 0; i < 100; ++i) {
        const Clock::time_point begin = Clock::now();
        SelectRows(*team, selections);
        seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
      }
      std::sort(seconds.begin(), seconds.end());
      const double median = seconds[seconds.size() / 2];
      printf("%ld,%d,%d,%.0f,%.1f\n", static_cast<long>(rows), what.top_k, what.norm, median * 1e6,
             4e-9 * static_cast<double>(rows * kVocabulary) / median);
    }
  }
}
