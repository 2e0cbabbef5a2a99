// Files cut off at many places and with bits flipped at many places: an error, or a checkpoint
// whose tensors can be read; never a crash. Its point is made under AddressSanitizer.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "model/checkpoint.h"
#include "model/config_reader.h"
#include "model/inspect_report.h"
#include "tests/model/checkpoint_files.h"

namespace lapidary {
namespace {

constexpr int kFlips = 150;

// Opens what `write` made, from `path`, and reads everything that it offers.
bool OpensOrFailsCleanly(const std::string& path) {
  const auto checkpoint = Checkpoint::Open(path);
  if (checkpoint.ok()) {
    TouchEverything(**checkpoint);
    EXPECT_TRUE(InspectReport(path).ok());
    return true;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(checkpoint.status()) || absl::IsNotFound(checkpoint.status()))
      << checkpoint.status();
  EXPECT_FALSE(checkpoint.status().message().empty());
  return false;
}

// Corrupts `name` in the folder; `path` is what gets opened.
void Corrupt(const TempFolder& folder, const std::string& name, const std::string& path,
             size_t header_bytes) {
  const std::string good = ReadBytes(folder.path() + "/" + name);
  ASSERT_TRUE(OpensOrFailsCleanly(path));
  // Cut: everywhere in the header's first bytes, then in growing steps, and one byte short.
  std::vector<size_t> cuts = {good.size() - 1};
  for (size_t at = 1; at < good.size(); at += at < 64 ? 1 : 1 + at / 16) cuts.push_back(at);
  for (const size_t cut : cuts) {
    folder.Write(name, good.substr(0, cut));
    EXPECT_FALSE(OpensOrFailsCleanly(path)) << name << " cut at " << cut << " of " << good.size();
  }
  // Flip: a bit, or a whole byte, in the header, where all the meaning is.
  std::mt19937 random(7);
  for (int flip = 0; flip < kFlips; ++flip) {
    std::string bad = good;
    const size_t at = random() % std::min(header_bytes, good.size());
    bad[at] = static_cast<char>(flip % 4 == 0 ? random() : bad[at] ^ (1 << (random() % 8)));
    folder.Write(name, bad);
    SCOPED_TRACE(testing::Message() << name << " changed at " << at);
    OpensOrFailsCleanly(path);
  }
  folder.Write(name, good);
}

TEST(Corruption, Safetensors) {
  const TempFolder folder;
  const auto config = ReadModelConfig(folder.Write("config.json", TinyConfigJson()));
  ASSERT_TRUE(config.ok()) << config.status();
  const std::string file = SafetensorsBytes(TensorsOf(config->spec, "model.", DType::kBf16));
  folder.Write("model.safetensors", file);
  Corrupt(folder, "model.safetensors", folder.path(), file.find('}', file.size() / 8));
}

TEST(Corruption, ConfigJson) {
  const TempFolder folder;
  const auto config = ReadModelConfig(folder.Write("config.json", TinyConfigJson()));
  ASSERT_TRUE(config.ok()) << config.status();
  folder.Write("model.safetensors", SafetensorsBytes(TensorsOf(config->spec, "", DType::kF16)));
  Corrupt(folder, "config.json", folder.path(), 1 << 20);
}

TEST(Corruption, Gguf) {
  const TempFolder folder;
  const std::string gemma3 = TinyGemma3Gguf(), gemma4 = TinyGemma4Gguf(true);
  const std::string path = folder.Write("model.gguf", gemma3);
  Corrupt(folder, "model.gguf", path, gemma3.rfind("post_ffw_norm"));
  folder.Write("model.gguf", gemma4);
  Corrupt(folder, "model.gguf", path, gemma4.rfind("post_ffw_norm"));
}

}  // namespace
}  // namespace lapidary
