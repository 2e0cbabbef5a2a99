// matmul_bench [--busy] shapes [formats [KxN [rows [arithmetic]]]] | model [kinds [rows]]
// prints CSV.
//
// --busy is for a machine that others use too: one thread, and its CPU time in place of the clock.
// Weights are cold: copies of the matrix over 1 GiB in turn (the last-level cache still keeps some:
// read medians). The share is that of min(memory roof, arithmetic roof), both measured in this run.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/base/half.h"
#include "kernels/ceilings.h"
#include "kernels/gemm/matmul.h"

namespace lapidary {
namespace {

double Now(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Times {
  double best, median;
};
Times Measure(clockid_t clock, double at_least, const std::function<void()>& run) {
  std::vector<double> seconds;
  for (double spent = 0; seconds.size() < 5 || (spent < at_least && seconds.size() < 2000);) {
    const double begin = Now(clock);
    run();
    seconds.push_back(Now(clock) - begin);
    spent += seconds.back();
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds[0], seconds[seconds.size() / 2]};
}

std::vector<float> Gaussian(int64_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& v : x) v = normal(rng);
  return x;
}

// Random codes and small scales.
void FillRandom(PackedWeight& w) {
  const WeightFormatInfo& info = Info(w.format);
  uint64_t state = 3;
  auto next = [&state] { return state = state * 6364136223846793005u + 1442695040888963407u; };
  for (int64_t at = 0; at < w.bytes(); at += info.block_bytes) {
    uint8_t* block = w.data.data() + at;
    for (int i = 0; i < info.block_bytes; i += 8) {
      uint64_t v = next() >> 7 ^ state;
      // Floats: magnitudes of 1/64 to 1/32.
      if (!IsQuantized(w.format)) v = (v & 0x807f807f807f807fu) | 0x3c803c803c803c80u;
      memcpy(block + i, &v, 8);
    }
    for (int i = 0; IsQuantized(w.format) && i < (info.has_min ? 64 : 32); ++i) {
      const uint16_t scale = ToFp16(0.001f + 1e-6f * static_cast<float>(next() >> 60));
      memcpy(block + i * 2, &scale, 2);
    }
  }
}

std::vector<PackedWeight> ColdCopies(WeightFormat format, int64_t n, int64_t k) {
  std::vector<PackedWeight> copies;
  for (int64_t bytes = 0; bytes < (int64_t{1} << 30);) {
    copies.emplace_back(format, n, k);
    if (copies.size() == 1) {
      FillRandom(copies[0]);
    } else {
      memcpy(copies.back().data.data(), copies[0].data.data(), copies[0].bytes());
    }
    bytes += copies.back().bytes();
  }
  return copies;
}

Ceilings MeasureRoofs(ThreadTeam& team) {
  HugeBuffer buffer(size_t{1} << 30);
  memset(buffer.data(), 1, buffer.bytes());
  const Ceilings c = MeasureCeilings(team, buffer.data(), static_cast<int64_t>(buffer.bytes()), 5);
  printf("# ceilings: read %.1f GB/s", c.read_gbs);
  for (int i = 0; i < kArithmetics; ++i) {
    printf(", %s %.0f", Name(static_cast<Arithmetic>(i)), c.gops[i]);
  }
  printf(" GOP/s\n");
  fflush(stdout);
  return c;
}

bool Wanted(const std::string& list, const std::string& name) {
  return list.empty() || ("," + list + ",").find("," + name + ",") != std::string::npos;
}

void Shapes(ThreadTeam& team, clockid_t clock, const std::vector<std::string>& filters) {
  struct Shape {
    int64_t k, n;
  };
  constexpr Shape kShapes[] = {{640, 2048},  {2048, 640},  {640, 262144},
                               {1536, 6144}, {2816, 2112}, {5376, 21504}};
  const Ceilings ceilings = MeasureRoofs(team);
  printf("format,arithmetic,k,n,rows,best_us,median_us,GB/s,GOP/s,share best,share median\n");
  for (int f = 0; f < kWeightFormats; ++f) {
    const auto format = static_cast<WeightFormat>(f);
    if (!Wanted(filters[0], Info(format).name)) continue;
    for (const Shape& s : kShapes) {
      if (!Wanted(filters[1], std::to_string(s.k) + "x" + std::to_string(s.n))) continue;
      const std::vector<PackedWeight> copies = ColdCopies(format, s.n, s.k);
      const HugeBuffer y_buffer(size_t{512} * s.n * 4);
      memset(y_buffer.data(), 0, y_buffer.bytes());
      auto* y = reinterpret_cast<float*>(y_buffer.data());
      for (int a = 0; a < kArithmetics; ++a) {
        const auto arithmetic = static_cast<Arithmetic>(a);
        if (!Fits(arithmetic, format) || !Supported(arithmetic)) continue;
        if (!Wanted(filters[3], Name(arithmetic))) continue;
        for (int64_t rows : {1, 2, 4, 8, 16, 32, 64, 512}) {
          if (!Wanted(filters[2], std::to_string(rows))) continue;
          ActivationRows x;
          x.Set(team, Gaussian(rows * s.k, 3).data(), rows, s.k, s.k, arithmetic, false);
          size_t next = 0;
          const Times t = Measure(clock, 0.25,
                                  [&] { Matmul(team, copies[next++ % copies.size()], x, y, s.n); });
          const double gb = 1e-9 * static_cast<double>(copies[0].bytes());
          const double gop = 2e-9 * static_cast<double>(rows * s.n * s.k);
          const double roof = std::max(gb / ceilings.read_gbs, gop / ceilings.gops[a]);
          printf("%s,%s,%ld,%ld,%ld,%.1f,%.1f,%.1f,%.0f,%.2f,%.2f\n", Info(format).name,
                 Name(arithmetic), s.k, s.n, rows, t.best * 1e6, t.median * 1e6, gb / t.median,
                 gop / t.median, roof / t.best, roof / t.median);
          fflush(stdout);
        }
      }
    }
  }
}

// All matrices of Gemma 3 270M as one step uses them, activations included and nothing else. "file"
// takes the formats of the Q4_K_M file.
class Model {
 public:
  explicit Model(const std::string& kind) {
    const bool file = kind == "file";
    const WeightFormat all = kind == "q4"     ? WeightFormat::kQ4
                             : kind == "bf16" ? WeightFormat::kBf16
                                              : WeightFormat::kQ8;
    auto add = [&](int64_t k, int64_t n, WeightFormat in_file) {
      matrices_.emplace_back(file ? in_file : all, n, k);
      FillRandom(matrices_.back());
    };
    for (int layer = 0; layer < 18; ++layer) {
      const bool rich = layer % 2 == 0;      // half of the down matrices have more bits
      add(640, 1536, WeightFormat::kQ5);     // Q, K and V
      add(1024, 640, WeightFormat::kQ4Min);  // attention output
      add(640, 4096, WeightFormat::kQ5);     // gate and up
      add(2048, 640, rich ? WeightFormat::kQ8Block16 : WeightFormat::kQ4Min);
    }
    add(640, 262144, kind == "q4" ? WeightFormat::kQ4 : WeightFormat::kQ8);  // the head
    y_ = HugeBuffer(size_t{64} * 262144 * 4);
    x_ = Gaussian(512 * 2048, 5);
  }

  // `rows` tokens through the layers, `head_rows` of them through the head.
  void Step(ThreadTeam& team, int64_t rows, int64_t head_rows, Arithmetic arithmetic) {
    for (const PackedWeight& w : matrices_) {
      const int64_t m = &w == &matrices_.back() ? head_rows : rows;
      const ActivationBlocks blocks =
          Info(w.format).block_k == 16 ? ActivationBlocks::k16 : ActivationBlocks::k32;
      const Arithmetic a = IsQuantized(w.format) == IsInt8(arithmetic) ? arithmetic : BestInt8();
      activations_.Set(team, x_.data(), m, w.k, w.k, a, false, blocks);
      Matmul(team, w, activations_, reinterpret_cast<float*>(y_.data()), w.n);
    }
  }
  double megabytes() const {
    int64_t bytes = 0;
    for (const PackedWeight& w : matrices_) bytes += w.bytes();
    return 1e-6 * static_cast<double>(bytes);
  }

 private:
  std::vector<PackedWeight> matrices_;
  std::vector<float> x_;
  HugeBuffer y_;
  ActivationRows activations_;
};

// Instruction sets take turns, so that a neighbour meets all of them alike.
void Models(ThreadTeam& team, clockid_t clock, const std::vector<std::string>& filters) {
  MeasureRoofs(team);
  printf("kind,MB,rows,head rows,arithmetic,best_ms,median_ms,tok/s best,tok/s median\n");
  for (const char* kind : {"file", "q8", "q4", "bf16"}) {
    if (!Wanted(filters[0], kind)) continue;
    Model model(kind);
    std::vector<Arithmetic> arithmetics = {BestFma()};
    if (strcmp(kind, "bf16") != 0) {
      arithmetics = {BestInt8()};
      if (BestInt8() == Arithmetic::kInt8Amx) arithmetics.push_back(Arithmetic::kInt8Vnni);
    }
    for (int64_t rows : {1, 4, 8, 16, 32, 64, 512}) {
      if (!Wanted(filters[1], std::to_string(rows))) continue;
      const int64_t head_rows = rows == 512 ? 1 : rows;  // a prompt wants one row of logits
      std::vector<std::vector<double>> seconds(arithmetics.size());
      for (double spent = 0; seconds[0].size() < 8 || spent < 1.5;) {
        for (size_t i = 0; i < arithmetics.size(); ++i) {
          const double begin = Now(clock);
          model.Step(team, rows, head_rows, arithmetics[i]);
          seconds[i].push_back(Now(clock) - begin);
          spent += seconds[i].back();
        }
      }
      const auto tokens = static_cast<double>(rows);
      for (size_t i = 0; i < arithmetics.size(); ++i) {
        std::sort(seconds[i].begin(), seconds[i].end());
        const double best = seconds[i][0], median = seconds[i][seconds[i].size() / 2];
        printf("%s,%.1f,%ld,%ld,%s,%.2f,%.2f,%.0f,%.0f\n", kind, model.megabytes(), rows, head_rows,
               Name(arithmetics[i]), best * 1e3, median * 1e3, tokens / best, tokens / median);
      }
      fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  using namespace lapidary;
  std::vector<std::string> args(argv + 1, argv + argc);
  const bool busy = !args.empty() && args[0] == "--busy";
  if (busy) args.erase(args.begin());
  args.resize(5);
  const clockid_t clock = busy ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  std::vector<int> cpus(busy ? 1 : std::max(1u, std::thread::hardware_concurrency()));
  for (size_t i = 0; i < cpus.size(); ++i) cpus[i] = static_cast<int>(i);
  const auto team = ThreadTeam::Create(0, cpus);
  if (args[0] == "shapes") {
    Shapes(*team, clock, {args[1], args[2], args[3], args[4]});
  } else if (args[0] == "model") {
    Models(*team, clock, {args[1], args[2]});
  } else {
    printf(
        "usage: matmul_bench [--busy] shapes [FORMATS [KxN [ROWS [ARITHMETIC]]]] | model [KINDS "
        "[ROWS]]\n");
  }
}
