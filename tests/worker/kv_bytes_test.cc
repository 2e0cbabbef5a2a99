// KV memory of one sequence on the true shapes of the released Gemma 4 models: what the page pools
// hold when it is driven as the scheduler does, against the formula, and beside what other servers
// would hold by their own rules. Prints the tables of docs/kv-cache.md.
#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "engine/kv_manager.h"
#include "gtest/gtest.h"
#include "model/config_reader.h"
#include "worker/kv_choice.h"

namespace lapidary {
namespace {

constexpr int kSliding = static_cast<int>(KvFamily::kSliding);
constexpr int kGlobal = static_cast<int>(KvFamily::kGlobal);
constexpr int32_t kContexts[] = {1024, 8192, 32768, 131072};
constexpr int32_t kChunk = 512;

// What one layer of a family stores, as the configurations say: written down by hand.
struct Shape {
  const char* config;
  const char* name;
  int window;
  int64_t sliding_layers, sliding_heads;  // heads of 256; layers that own KV
  int64_t global_layers, global_heads;    // heads of 512
  bool k_eq_v;                            // of the global layers

  int64_t layers(int f) const { return f == kSliding ? sliding_layers : global_layers; }
  // Elements of k and v of one layer and token.
  int64_t split(int f) const { return f == kSliding ? sliding_heads * 512 : global_heads * 1024; }
};
constexpr Shape kShapes[] = {
    {"gemma-4-e2b", "E2B", 512, 12, 1, 3, 1, false},
    {"gemma-4-e4b", "E4B", 512, 20, 2, 4, 2, false},
    {"gemma-4-12b", "12B", 1024, 40, 8, 8, 1, true},
    {"gemma-4-26b-a4b", "26B-A4B", 1024, 25, 8, 5, 2, true},
    {"gemma-4-31b", "31B", 1024, 50, 16, 10, 4, true},
};

// Bytes of a page of each family, as the CPU backend places them.
std::array<int64_t, kKvFamilies> PageBytes(const ModelSpec& spec, KvChoice choice) {
  std::vector<LayerWeights> layers(spec.layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].index = static_cast<int>(i);
    layers[i].spec = spec.layers[i];
    layers[i].v_norm = spec.v_norm;
  }
  const std::vector<KvLayout> layouts = PlaceKv(layers, choice);
  std::array<int64_t, kKvFamilies> bytes = {0, 0};
  for (const LayerWeights& layer : layers) {
    if (!layer.owns_kv()) continue;
    bytes[static_cast<int>(layer.spec.kind)] +=
        layer.spec.kv_heads * layouts[layer.index].head_bytes();
  }
  return bytes;
}

struct Held {
  std::array<int32_t, kKvFamilies> now;   // pages, when `len` tokens are computed
  std::array<int32_t, kKvFamilies> peak;  // while the prompt is computed in chunks
};

// A prompt of `len` tokens, as the scheduler computes it.
Held Measure(int32_t window, int32_t len) {
  KvManager kv({PagesFor(len), PagesFor(len)}, window);
  SequencePages pages;
  Held held = {};
  for (int32_t computed = 0; computed < len;) {
    computed = std::min(computed + kChunk, len);
    kv.Extend(pages, computed);
    for (const KvFamily f : {KvFamily::kSliding, KvFamily::kGlobal}) {
      int32_t& peak = held.peak[static_cast<int>(f)];
      peak = std::max(peak, kv.pool(f).used());
    }
    kv.FreeBehindWindow(pages, computed);
  }
  held.now = {kv.pool(KvFamily::kSliding).used(), kv.pool(KvFamily::kGlobal).used()};
  return held;
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// vLLM's kv_cache_utils.py, bf16: the layers of each kind in groups of as many layers as the rarer
// kind has; all pages of one size, to which the smaller kind comes by more tokens in a block; K and
// V both. Without its hybrid manager every layer is charged for the whole context.
int64_t VllmBytes(const Shape& shape, int32_t len, bool hybrid) {
  int64_t page = 0;
  for (int f = 0; f < kKvFamilies; ++f) page = std::max(page, 16 * 2 * shape.split(f));
  const int64_t group = std::min(shape.sliding_layers, shape.global_layers);
  int64_t bytes = 0;
  for (int f = 0; f < kKvFamilies; ++f) {
    const int64_t block = page / (2 * shape.split(f));  // tokens
    int64_t blocks = CeilDiv(len, block);
    if (f == kSliding && hybrid) blocks -= std::max(len - shape.window + 1, 0) / block;
    bytes += CeilDiv(shape.layers(f), group) * group * blocks * page;
  }
  return bytes;
}

// llama.cpp's llama-kv-cache-iswa.cpp, f16, one slot: cells for the whole context in global layers,
// and for the window and a micro-batch of 512 in sliding ones, rounded up to 256 (with --swa-full
// for the whole context); K and V both. Allocated when it starts, whatever a request needs.
int64_t LlamaCppBytes(const Shape& shape, int32_t len, bool swa_full) {
  const int64_t window_cells = CeilDiv(std::min(len, shape.window + 512), 256) * 256;
  return 2 * (shape.layers(kGlobal) * shape.split(kGlobal) * len +
              shape.layers(kSliding) * shape.split(kSliding) * (swa_full ? len : window_cells));
}

class KvBytes : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    const absl::StatusOr<ModelConfig> config =
        ReadModelConfig(std::string("tests/golden/configs/") + GetParam().config + ".json");
    ASSERT_TRUE(config.ok()) << config.status();
    spec_ = config->spec;
  }
  ModelSpec spec_;
};

// A page is 16 tokens of the family's owning layers, with nothing added.
TEST_P(KvBytes, APageIsItsTokens) {
  const Shape& shape = GetParam();
  EXPECT_EQ(spec_.owning_layers(KvFamily::kSliding), shape.sliding_layers);
  EXPECT_EQ(spec_.owning_layers(KvFamily::kGlobal), shape.global_layers);
  for (const auto& [format, columns] : std::vector<std::pair<KvFormat, int64_t>>{
           {KvFormat::kSplit, 1024}, {KvFormat::kFolded, 640}, {KvFormat::kSingle, 512}}) {
    const int64_t kept = shape.k_eq_v ? columns : 1024;
    const auto bf16 = PageBytes(spec_, {format, KvType::kBf16});
    EXPECT_EQ(bf16[kSliding], 16 * 2 * shape.sliding_layers * shape.split(kSliding));
    EXPECT_EQ(bf16[kGlobal], 16 * 2 * shape.global_layers * shape.global_heads * kept);
    // In 8 bit: half of it, and a scale of 4 bytes for each key and each value that is stored.
    const auto int8 = PageBytes(spec_, {format, KvType::kInt8});
    const int64_t scales = 4 * 16 * (kept == 512 ? 1 : 2);
    EXPECT_EQ(int8[kSliding],
              bf16[kSliding] / 2 + shape.sliding_layers * shape.sliding_heads * 4 * 16 * 2);
    EXPECT_EQ(int8[kGlobal], bf16[kGlobal] / 2 + shape.global_layers * shape.global_heads * scales);
  }
}

// Global pages for every token; sliding pages from that of the oldest key which the next query
// reads to that of the newest token. While a prompt is computed, its chunk comes on top.
TEST_P(KvBytes, ThePoolsHoldWhatTheFormulaSays) {
  const int64_t window = GetParam().window;
  for (const int32_t context : kContexts) {
    for (const int32_t len : {context - 1, context, context + 1}) {
      const Held held = Measure(GetParam().window, len);
      EXPECT_EQ(held.now[kGlobal], CeilDiv(len, 16));
      EXPECT_EQ(held.now[kSliding], CeilDiv(len, 16) - std::max<int64_t>(len - window + 1, 0) / 16);
      EXPECT_LE(held.now[kSliding], CeilDiv(window - 1, 16) + 1);
      EXPECT_LE(held.peak[kSliding], CeilDiv(window - 1, 16) + 1 + kChunk / 16);
      EXPECT_EQ(held.peak[kGlobal], held.now[kGlobal]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, KvBytes, testing::ValuesIn(kShapes), [](const auto& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

class PrintTables : public testing::Environment {
 public:
  void TearDown() override {
    std::printf(
        "\n| | sliding layers, bytes per token | bytes of a page | global layers, bytes per token "
        "| "
        "bytes of a page | per token in `split` | sliding, global per token in int8 |\n"
        "|---|---|---|---|---|---|---|\n");
    for (const Shape& shape : kShapes) {
      const auto config =
          ReadModelConfig(std::string("tests/golden/configs/") + shape.config + ".json");
      if (!config.ok()) return;
      const auto kept = PageBytes(config->spec, {KvFormat::kFolded, KvType::kBf16});
      const auto split = PageBytes(config->spec, {KvFormat::kSplit, KvType::kBf16});
      const auto int8 = PageBytes(config->spec, {KvFormat::kFolded, KvType::kInt8});
      std::printf("| %s | %lld, %s | %s | %lld, %s | %s | %s | %s, %s |\n", shape.name,
                  static_cast<long long>(shape.sliding_layers), Number(kept[kSliding] / 16).c_str(),
                  Number(kept[kSliding]).c_str(), static_cast<long long>(shape.global_layers),
                  Number(kept[kGlobal] / 16).c_str(), Number(kept[kGlobal]).c_str(),
                  Number(split[kGlobal] / 16).c_str(), Number(int8[kSliding] / 16).c_str(),
                  Number(int8[kGlobal] / 16).c_str());
    }
    std::printf(
        "\n| MiB | tokens | Lapidary, `folded` | `split` | int8 | vLLM, hybrid | vLLM, not "
        "hybrid | llama.cpp | llama.cpp, `--swa-full` |\n|---|---|---|---|---|---|---|---|"
        "---|\n");
    for (const Shape& shape : kShapes) {
      const auto config =
          ReadModelConfig(std::string("tests/golden/configs/") + shape.config + ".json");
      for (const int32_t len : kContexts) {
        const Held held = Measure(shape.window, len);
        const auto ours = [&](KvChoice choice) {
          const auto page = PageBytes(config->spec, choice);
          return Mib(held.now[kSliding] * page[kSliding] + held.now[kGlobal] * page[kGlobal]);
        };
        std::printf("| %s | %d Ki | %s | %s | %s | %s | %s | %s | %s |\n",
                    len == kContexts[0] ? shape.name : "", len / 1024,
                    ours({KvFormat::kFolded, KvType::kBf16}).c_str(),
                    ours({KvFormat::kSplit, KvType::kBf16}).c_str(),
                    ours({KvFormat::kFolded, KvType::kInt8}).c_str(),
                    Mib(VllmBytes(shape, len, true)).c_str(),
                    Mib(VllmBytes(shape, len, false)).c_str(),
                    Mib(LlamaCppBytes(shape, len, false)).c_str(),
                    Mib(LlamaCppBytes(shape, len, true)).c_str());
      }
    }
  }

 private:
  static std::string Number(int64_t n) {  // 1,234,567
    std::string text = std::to_string(n);
    for (int i = static_cast<int>(text.size()) - 3; i > 0; i -= 3) text.insert(i, ",");
    return text;
  }
  static std::string Mib(int64_t bytes) {
    const double mib = static_cast<double>(bytes) / (1 << 20);
    char text[32];
    std::snprintf(text, sizeof text, mib < 100 ? "%.1f" : "%.0f", mib);
    return mib < 100 ? text : Number(std::stoll(text));
  }
};
const auto* const kPrintTables = testing::AddGlobalTestEnvironment(new PrintTables);

}  // namespace
}  // namespace lapidary
