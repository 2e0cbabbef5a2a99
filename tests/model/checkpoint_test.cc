// Opening checkpoints: every layout loads, and what does not fit is named.
#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "model/config_reader.h"
#include "tests/model/checkpoint_files.h"

namespace lapidary {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A folder with TinyConfigJson and its tensors.
class HuggingFace : public testing::Test {
 protected:
  HuggingFace() {
    const auto config = ReadModelConfig(folder_.Write("config.json", TinyConfigJson()));
    EXPECT_TRUE(config.ok()) << config.status();
    if (config.ok()) spec_ = config->spec;
  }
  void WriteModel(const std::vector<TensorToStore>& tensors) {
    folder_.Write("model.safetensors", SafetensorsBytes(tensors));
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() { return Checkpoint::Open(folder_.path()); }
  std::string Error() {
    const auto opened = Open();
    if (opened.ok()) return "it opened";
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(opened.status().message());
  }

  const TempFolder folder_;
  ModelSpec spec_;
};

TEST_F(HuggingFace, EveryPrefixGivesTheSameNames) {
  for (const char* prefix : {"", "model.", "model.language_model.", "language_model.model."}) {
    const std::vector<TensorToStore> stored = TensorsOf(spec_, prefix, DType::kBf16);
    WriteModel(stored);
    const auto checkpoint = Open();
    ASSERT_TRUE(checkpoint.ok()) << prefix << ": " << checkpoint.status();
    EXPECT_EQ((*checkpoint)->tensors().size(), stored.size());
    EXPECT_TRUE((*checkpoint)->unused_tensors().empty());
    EXPECT_FALSE((*checkpoint)->quantized());
    const StoredTensor* const q = (*checkpoint)->Find("layers.3.self_attn.q_proj.weight");
    ASSERT_NE(q, nullptr);
    EXPECT_THAT(q->shape, ElementsAre(80, 24));
    EXPECT_EQ(q->rows(), 80);
    EXPECT_EQ(q->inner(), 24);
    EXPECT_EQ(q->dtype, DType::kBf16);
    EXPECT_EQ(q->file, "model.safetensors");
    const std::string content =
        TensorToStore{std::string(prefix) + q->name, q->shape, DType::kBf16}.Content();
    ASSERT_EQ(q->bytes, std::ssize(content));
    EXPECT_EQ(std::memcmp(q->data, content.data(), content.size()), 0);
    EXPECT_EQ((*checkpoint)->Find("layers.5.self_attn.k_proj.weight"), nullptr);  // shared
    TouchEverything(**checkpoint);
  }
}

TEST_F(HuggingFace, ShardsAreFoundThroughTheIndex) {
  const std::vector<TensorToStore> tensors = TensorsOf(spec_, "model.");
  std::string index = "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {";
  std::vector<TensorToStore> parts[2];
  for (size_t i = 0; i < tensors.size(); ++i) {
    parts[i % 2].push_back(tensors[i]);
    index += (i == 0 ? "\"" : ", \"") + tensors[i].name + "\": \"" +
             (i % 2 == 0 ? "a.safetensors" : "b.safetensors") + "\"";
  }
  folder_.Write("a.safetensors", SafetensorsBytes(parts[0]));
  folder_.Write("b.safetensors", SafetensorsBytes(parts[1]));
  EXPECT_THAT(Error(), HasSubstr("2 safetensors files and no model.safetensors.index.json"));
  folder_.Write("model.safetensors.index.json", index + "}}");
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), tensors.size());
  TouchEverything(**checkpoint);

  folder_.Write("model.safetensors.index.json", index + ", \"ghost\": \"a.safetensors\"}}");
  EXPECT_THAT(Error(), HasSubstr("says that a.safetensors holds 'ghost', and it does not"));
  folder_.Write("model.safetensors.index.json", index + ", \"x\": \"../a.safetensors\"}}");
  EXPECT_THAT(Error(), HasSubstr("names no file of this folder for 'x'"));
  folder_.Write("model.safetensors.index.json", index + ", \"x\": \"c.safetensors\"}}");
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("c.safetensors"));
}

TEST_F(HuggingFace, DeadTensorsTowersAndACopiedHeadAreUnused) {
  std::vector<TensorToStore> tensors = TensorsOf(spec_, "model.language_model.");
  const std::string layer4 = "model.language_model.layers.4.self_attn.";  // shares KV
  tensors.push_back({layer4 + "k_proj.weight", {24, 24}});
  tensors.push_back({layer4 + "v_proj.weight", {24, 24}});
  tensors.push_back({layer4 + "k_norm.weight", {12}});
  tensors.push_back({"model.vision_tower.encoder.weight", {3, 3}});
  tensors.push_back({"model.audio_tower.x", {}});
  tensors.push_back({"model.embed_vision.embedding_projection.weight", {2}});
  tensors.push_back({"model.embed_audio.y", {2}});
  WriteModel(tensors);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->unused_tensors().size(), 7u);
  EXPECT_EQ((*checkpoint)->unused_bytes(), 4 * (2 * 24 * 24 + 12 + 9 + 1 + 2 + 2));
  EXPECT_EQ((*checkpoint)->Find("layers.4.self_attn.k_proj.weight"), nullptr);
}

TEST_F(HuggingFace, AHeadIsUnusedWhenItIsTheEmbeddingAndRefusedElse) {
  std::vector<TensorToStore> tensors = TensorsOf(spec_, "model.");
  tensors.push_back({"lm_head.weight", {30, 24}});  // the content depends on the name
  WriteModel(tensors);
  EXPECT_THAT(Error(), HasSubstr("an untied head is not supported"));
  // The same bytes: overwrite the head's with the embedding's.
  std::string file = SafetensorsBytes(tensors);
  const std::string embedding = tensors[0].Content();
  file.replace(file.size() - embedding.size(), embedding.size(), embedding);
  folder_.Write("model.safetensors", file);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->unused_tensors(), ElementsAre("lm_head.weight"));
}

TEST_F(HuggingFace, OneTableNamesEverythingThatDoesNotFit) {
  std::vector<TensorToStore> tensors = TensorsOf(spec_, "model.");
  std::erase_if(tensors, [](const TensorToStore& t) {
    return t.name == "model.layers.1.mlp.up_proj.weight" || t.name == "model.norm.weight";
  });
  for (TensorToStore& tensor : tensors) {
    if (tensor.name == "model.layers.0.self_attn.o_proj.weight") tensor.shape = {48, 24};
  }
  tensors.push_back({"model.layers.0.self_attn.sinks", {4}});
  WriteModel(tensors);
  const std::string error = Error();
  EXPECT_THAT(error, HasSubstr("4 tensors do not fit the model"));
  EXPECT_THAT(error, testing::ContainsRegex("layers.1.mlp.up_proj.weight +\\[20, 24\\] +missing"));
  EXPECT_THAT(error, testing::ContainsRegex("norm.weight +\\[24\\] +missing"));
  EXPECT_THAT(error, testing::ContainsRegex("layers.0.self_attn.o_proj.weight +\\[24, 48\\] +F32 "
                                            "\\[48, 24\\] in model.safetensors"));
  EXPECT_THAT(error, testing::ContainsRegex("sinks +not part of the model +F32 \\[4\\]"));
}

TEST_F(HuggingFace, ALongTableIsCut) {
  WriteModel({{"model.norm.weight", {24}}});
  const std::string error = Error();
  EXPECT_THAT(error, HasSubstr("... and "));
  EXPECT_LT(std::count(error.begin(), error.end(), '\n'), 50);
}

TEST_F(HuggingFace, ATensorUnderTwoNamesIsRefused) {
  std::vector<TensorToStore> tensors = TensorsOf(spec_, "model.");
  tensors.push_back({"norm.weight", {24}});
  WriteModel(tensors);
  EXPECT_THAT(Error(), HasSubstr("twice"));
}

TEST_F(HuggingFace, ATypeThatWeDoNotComputeWithIsNamed) {
  std::string file = SafetensorsBytes(TensorsOf(spec_, "model."));
  const size_t at = file.find("\"F32\"", file.find("model.norm.weight"));
  file.replace(at, 5, "\"I32\"");
  folder_.Write("model.safetensors", file);
  EXPECT_THAT(Error(), testing::ContainsRegex("\\[24\\] as F32, F16 or BF16 +I32 \\[24\\]"));
}

TEST_F(HuggingFace, QuantisedSafetensorsAreRefusedByName) {
  std::string config = TinyConfigJson();
  config.insert(1, "\"quantization_config\": {\"quant_method\": \"modelopt\"},");
  folder_.Write("config.json", config);
  WriteModel(TensorsOf(spec_, "model."));
  EXPECT_THAT(Error(), HasSubstr("quantised by 'modelopt'"));
}

TEST_F(HuggingFace, WithoutWeightsOnlyWhenNoneAreNeeded) {
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("neither model.safetensors nor"));
  for (const std::string& path : {folder_.path(), folder_.path() + "/config.json"}) {
    const auto checkpoint = Checkpoint::Open(path, {.require_tensors = false});
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_TRUE((*checkpoint)->tensors().empty());
    EXPECT_EQ((*checkpoint)->spec().layers.size(), 6u);
  }
  EXPECT_FALSE(Checkpoint::Open(folder_.path() + "/config.json").ok());
  std::filesystem::remove(folder_.path() + "/config.json");
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("has no config.json"));
  EXPECT_EQ(Checkpoint::Open(folder_.path() + "/nothing").status().code(),
            absl::StatusCode::kNotFound);
}

// Header texts that are well-formed JSON and wrong.
struct BadHeader {
  const char* name;
  const char* entry;  // of tensor "t"; the file has 16 bytes of data
  const char* message;
};
class BadSafetensors : public testing::TestWithParam<BadHeader> {};
INSTANTIATE_TEST_SUITE_P(
    All, BadSafetensors,
    testing::Values(
        BadHeader{"past_the_end", R"({"dtype":"F32","shape":[5],"data_offsets":[0,20]})",
                  "end at byte 20, and the file has 16 bytes of data"},
        BadHeader{"size", R"({"dtype":"F32","shape":[3],"data_offsets":[0,16]})",
                  "span 16 bytes, but F32 [3] needs 12"},
        BadHeader{"backwards", R"({"dtype":"F32","shape":[1],"data_offsets":[8,4]})",
                  "go from 8 back to 4"},
        BadHeader{"negative", R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})",
                  "not a pair of offsets"},
        BadHeader{"negative_size", R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})",
                  "negative, fractional or absurd"},
        BadHeader{"overflow",
                  R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})",
                  "negative, fractional or absurd"},
        BadHeader{"dtype", R"({"dtype":"Q9","shape":[1],"data_offsets":[0,4]})", "is 'Q9'"},
        BadHeader{"no_dtype", R"({"shape":[1],"data_offsets":[0,4]})", "dtype is ''"},
        BadHeader{"no_object", "7", "tensor 't'"},
        BadHeader{"no_shape", R"({"dtype":"F32","data_offsets":[0,4]})", "shape is not a list"},
        BadHeader{"overlap",
                  R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                     "u":{"dtype":"F32","shape":[2],"data_offsets":[4,12]})",
                  "tensors 't' and 'u' overlap"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(BadSafetensors, IsRefusedWithTheTensorAndTheReason) {
  const TempFolder folder;
  folder.Write("config.json", TinyConfigJson());
  const std::string header = std::string("{\"t\":") + GetParam().entry + "}";
  const uint64_t length = header.size();
  folder.Write("model.safetensors", std::string(reinterpret_cast<const char*>(&length), 8) +
                                        header + std::string(16, 'x'));
  const absl::Status status = Checkpoint::Open(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
}

TEST(Checkpoint, EveryGoldenModelOpens) {
  int opened = 0;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden/models")) {
    if (!entry.is_directory()) continue;
    const auto checkpoint = Checkpoint::Open(entry.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!checkpoint.ok()) continue;
    TouchEverything(**checkpoint);
    ++opened;
  }
  EXPECT_GE(opened, 10);
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& bytes) {
  const TempFolder folder;  // a mapping outlives its file's name
  return Checkpoint::Open(folder.Write("model.gguf", bytes));
}

TEST(GgufCheckpoint, Gemma3) {
  const auto checkpoint = OpenGguf(TinyGemma3Gguf());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelSpec& spec = (*checkpoint)->spec();
  EXPECT_EQ(spec.model_type, "gguf:gemma3");
  EXPECT_FALSE(spec.norm_weight_plus_one);  // the file has 1 + w
  EXPECT_FALSE(spec.v_norm);
  EXPECT_EQ(spec.attention_scale, 0.25);
  EXPECT_EQ(spec.vocab, 40);
  EXPECT_EQ(spec.layers[5].kind, KvFamily::kGlobal);
  EXPECT_EQ(spec.layers[5].rope.theta, 1e6);
  EXPECT_EQ(spec.layers[6].kind, KvFamily::kSliding);
  EXPECT_EQ(spec.layers[6].rope.theta, 1e4);
  EXPECT_EQ(spec.layers[6].window, 9);
  EXPECT_EQ(spec.weight_block, 32);
  EXPECT_TRUE((*checkpoint)->quantized());
  const StoredTensor* const down = (*checkpoint)->Find("layers.2.mlp.down_proj.weight");
  ASSERT_NE(down, nullptr);
  EXPECT_THAT(down->shape, ElementsAre(64, 96));
  EXPECT_EQ(down->dtype, DType::kQ5_0);
  EXPECT_EQ(down->bytes, 64 * 96 / 32 * 22);
  TouchEverything(**checkpoint);
}

TEST(GgufCheckpoint, Gemma4WithKEqualsVAndExperts) {
  for (const bool split : {false, true}) {
    const auto checkpoint = OpenGguf(TinyGemma4Gguf(split));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const Checkpoint& file = **checkpoint;
    const ModelSpec& spec = file.spec();
    EXPECT_TRUE(spec.layers[1].k_eq_v);
    EXPECT_FALSE(spec.layers[0].k_eq_v);
    EXPECT_EQ(spec.layers[0].kv_heads, 4);
    EXPECT_EQ(spec.layers[1].kv_heads, 2);
    EXPECT_EQ(spec.layers[1].rope.rotated_pairs, 4);
    EXPECT_EQ(spec.layers[1].rope.factor, 1.0);
    EXPECT_EQ(spec.layers[0].rope.rotated_pairs, 16);
    EXPECT_EQ(spec.final_softcap, 30.0);
    EXPECT_EQ(spec.moe.experts, 3);
    EXPECT_THAT(spec.eos_ids, ElementsAre(1, 3));  // a chat file also ends on its turn marker
    EXPECT_EQ(file.Find("rope_freqs.weight"), nullptr);
    EXPECT_TRUE(file.unused_tensors().empty());
    EXPECT_EQ(file.Find("layers.0.experts.gate_up_proj") != nullptr, !split);
    EXPECT_EQ(file.Find("layers.0.experts.gate_proj") != nullptr, split);
    EXPECT_EQ(file.Find("layers.0.experts.up_proj") != nullptr, split);
    EXPECT_NE(file.Find("layers.0.router.per_expert_scale"), nullptr);
    EXPECT_NE(file.Find("layers.3.layer_scalar"), nullptr);
    TouchEverything(file);
  }
}

// Bytes of `what` in the file become `with`, which is as long.
std::string Replaced(std::string bytes, const std::string& what, const std::string& with) {
  const size_t at = bytes.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return bytes.replace(at, what.size(), with);
}
std::string GgufError(const std::string& bytes) {
  const auto opened = OpenGguf(bytes);
  return opened.ok() ? "it opened" : std::string(opened.status().message());
}

TEST(GgufCheckpoint, WhatDoesNotFitIsNamed) {
  const std::string good = TinyGemma4Gguf(false);
  EXPECT_THAT(GgufError(Replaced(good, "blk.2.attn_v.weight", "blk.2.attn_x.weight")),
              testing::AllOf(HasSubstr("layers.2.self_attn.v_proj.weight"), HasSubstr("missing"),
                             HasSubstr("blk.2.attn_x.weight"), HasSubstr("not part of the model")));
  EXPECT_THAT(GgufError(GgufBuilder().String("general.architecture", "llama").Build()),
              HasSubstr("general.architecture is 'llama'; supported are gemma3 and gemma4"));
  EXPECT_THAT(GgufError(GgufBuilder().Build()), HasSubstr("no metadata 'general.architecture'"));
  EXPECT_THAT(GgufError(Replaced(good, "gemma4.block_count", "gemma4.block_xount")),
              HasSubstr("no metadata 'gemma4.block_count'"));
  EXPECT_THAT(GgufError(Replaced(good, "rope_freqs.weight", "rope_fraqs.weight")),
              HasSubstr("'rope_freqs.weight' is missing"));
}

}  // namespace
}  // namespace lapidary
