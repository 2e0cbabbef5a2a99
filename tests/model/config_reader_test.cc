// config.json to ModelSpec: the released sizes against published figures, every spelling of a key,
// and what is refused.
#include "model/config_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "model/shard_plan.h"
#include "model/tensor_table.h"
#include "model/weight_bytes.h"
#include "tests/model/checkpoint_files.h"

namespace lapidary {
namespace {

using nlohmann::json;
using testing::HasSubstr;

absl::StatusOr<ModelConfig> Read(const json& config) {
  const TempFolder folder;
  return ReadModelConfig(folder.Write("config.json", config.dump()));
}
// The spec as text, or the error.
std::string Described(const json& config) {
  const auto read = Read(config);
  return read.ok() ? Describe(read->spec) : read.status().ToString();
}

struct Released {
  const char* file;
  const char* name;
  int layers, tensors;
  int64_t live, dead, active;
  int64_t sliding_kv, full_kv;  // bytes per token in bf16
};
class ReleasedSize : public testing::TestWithParam<Released> {};
INSTANTIATE_TEST_SUITE_P(All, ReleasedSize,
                         testing::Values(Released{"31b", "Gemma 4 31B", 60, 832, 30'697'345'340, 0,
                                                  30'697'345'340, 819'200, 81'920},
                                         Released{"26b-a4b", "Gemma 4 26B-A4B", 30, 657,
                                                  25'233'141'790, 0, 3'822'530'590, 204'800,
                                                  20'480},
                                         Released{"12b", "Gemma 4 12B", 48, 666, 11'907'350'320, 0,
                                                  11'907'350'320, 327'680, 16'384},
                                         Released{"e4b", "Gemma 4 E4B", 42, 665, 7'463'013'418,
                                                  55'055'616, 4'644'441'130, 40'960, 16'384},
                                         Released{"e2b", "Gemma 4 E2B", 35, 540, 4'628'569'379,
                                                  18'880'512, 2'279'759'139, 12'288, 6'144}),
                         [](const auto& info) {
                           std::string name = info.param.file;
                           std::erase(name, '-');
                           return name;
                         });

TEST_P(ReleasedSize, HasThePublishedFigures) {
  const Released& want = GetParam();
  const auto config =
      ReadModelConfig(std::string("tests/golden/configs/gemma-4-") + want.file + ".json");
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  EXPECT_EQ(spec.display_name, want.name);
  EXPECT_EQ(std::ssize(spec.layers), want.layers);
  EXPECT_EQ(std::ssize(ExpectedTensors(spec)), want.tensors);
  EXPECT_EQ(LiveParameters(spec), want.live);
  EXPECT_EQ(DeadParameters(spec), want.dead);
  EXPECT_EQ(ActiveParameters(spec), want.active);
  const auto plan = PlanShards(spec, 1);
  ASSERT_TRUE(plan.ok());
  const KvStorage split{KvFormat::kSplit, KvType::kBf16};
  EXPECT_EQ(KvBytesPerToken(spec, plan->ranks[0], KvFamily::kSliding, split), want.sliding_kv);
  EXPECT_EQ(KvBytesPerToken(spec, plan->ranks[0], KvFamily::kGlobal, split), want.full_kv);
  EXPECT_EQ(spec.layers.back().kind, KvFamily::kGlobal);
  EXPECT_EQ(spec.layers[4].rope.rotated_pairs, spec.layers[4].head_dim == 512 ? 64 : 128);
}

TEST(Config, E2bSharesKvAndDoublesItsMlp) {
  const auto config = ReadModelConfig("tests/golden/configs/gemma-4-e2b.json");
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  EXPECT_EQ(spec.first_shared_layer(), 15);
  EXPECT_EQ(spec.layers[15].kv_owner, 13);
  EXPECT_EQ(spec.layers[34].kv_owner, 14);
  EXPECT_EQ(spec.layers[14].mlp_width, 6144);
  EXPECT_EQ(spec.layers[15].mlp_width, 12288);
  EXPECT_EQ(spec.owning_layers(KvFamily::kSliding), 12);
  EXPECT_EQ(spec.owning_layers(KvFamily::kGlobal), 3);
}

// The newest spelling of everything, flat. Other spellings are written as differences from it.
json Newest() {
  return json::parse(R"({
    "model_type": "gemma4_text", "hidden_size": 24, "intermediate_size": 20, "vocab_size": 30,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "per_layer_config": {"2": {"head_dim": 20, "num_key_value_heads": 1},
                         "5": {"head_dim": 20, "num_key_value_heads": 1}},
    "attention_k_eq_v": true, "sliding_window": 7, "max_position_embeddings": 99,
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "final_logit_softcapping": 30.0,
    "enable_moe_block": true, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 11,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
                    "sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
      "full_attention": {"rope_type": "proportional", "rope_theta": 2e6,
                         "partial_rotary_factor": 0.3},
      "sliding_attention": {"rope_type": "default", "rope_theta": 3e4}},
    "eos_token_id": [1, 9], "bos_token_id": 2, "pad_token_id": 0, "rms_norm_eps": 1e-6
  })");
}

TEST(Config, EverySpellingGivesTheSameSpec) {
  const std::string want = Described(Newest());
  EXPECT_THAT(want, HasSubstr("experts 5 top 2 width 11"));
  EXPECT_THAT(want, HasSubstr("full q 4 kv 1 d 20 window 0 theta 2e+06 pairs 3"));
  {
    json nested = {{"model_type", "gemma4"}, {"text_config", Newest()}};
    EXPECT_EQ(Described(nested), want);
    nested["text_config"].erase("model_type");
    nested["eos_token_id"] = json::array({1, 9});
    nested["text_config"]["eos_token_id"] = 5;  // the outer one counts
    EXPECT_EQ(Described(nested), want);
  }
  {
    json older = Newest();
    older.erase("per_layer_config");
    older["global_head_dim"] = 20;
    older["num_global_key_value_heads"] = 1;
    older.erase("moe_intermediate_size");
    older["expert_intermediate_size"] = 11;
    EXPECT_EQ(Described(older), want);
    older.erase("rope_parameters");
    older["rope_theta"] = 2e6;
    older["rope_local_base_freq"] = 3e4;
    older["partial_rotary_factor"] = 0.3;
    EXPECT_EQ(Described(older), want);
    older.erase("layer_types");
    older["sliding_window_pattern"] = 3;
    EXPECT_EQ(Described(older), want);
    older.erase("sliding_window_pattern");
    older["_sliding_window_pattern"] = 3;
    EXPECT_EQ(Described(older), want);
  }
  {
    json padded = Newest();  // numbers as floats, keys padded
    padded["per_layer_config"] = {{"02", padded["per_layer_config"]["2"]},
                                  {"05", padded["per_layer_config"]["5"]}};
    padded["hidden_size"] = 24.0;
    EXPECT_EQ(Described(padded), want);
  }
}

TEST(Config, GlobalKvHeadsCountOnlyWhereKIsV) {
  json config = Newest();
  config.erase("per_layer_config");
  config["global_head_dim"] = 20;
  config["num_global_key_value_heads"] = 1;
  config["attention_k_eq_v"] = false;
  EXPECT_THAT(Described(config), HasSubstr("full q 4 kv 2 d 20"));
  config["attention_k_eq_v"] = true;
  config["num_global_key_value_heads"] = nullptr;
  EXPECT_THAT(Described(config), HasSubstr("full q 4 kv 2 d 20"));
}

TEST(Config, AnEmptyPerLayerConfigMeansThatNoLayerDiffers) {
  json config = Newest();
  config["per_layer_config"] = json::object();
  EXPECT_THAT(Described(config), HasSubstr("full q 4 kv 2 d 12"));
  config.erase("per_layer_config");  // but without it a full layer's head is 512
  EXPECT_THAT(Described(config), HasSubstr("full q 4 kv 2 d 512"));
}

TEST(Config, Gemma4EndsOnAFullLayerAndGemma3WhereItEnds) {
  json config = Newest();
  config["layer_types"][5] = "sliding_attention";
  EXPECT_EQ(Described(config), Described(Newest()));
  config = {{"model_type", "gemma3_text"}, {"num_hidden_layers", 8}};
  const auto gemma3 = Read(config);
  ASSERT_TRUE(gemma3.ok()) << gemma3.status();
  EXPECT_EQ(gemma3->spec.layers[5].kind, KvFamily::kGlobal);
  EXPECT_EQ(gemma3->spec.layers[7].kind, KvFamily::kSliding);
}

TEST(Config, Gemma3OfBothAges) {
  const json common = {{"model_type", "gemma3_text"},
                       {"num_hidden_layers", 7},
                       {"hidden_size", 24},
                       {"intermediate_size", 20},
                       {"num_attention_heads", 4},
                       {"num_key_value_heads", 1},
                       {"head_dim", 12},
                       {"sliding_window", 9},
                       {"vocab_size", 30},
                       {"query_pre_attn_scalar", 17}};
  json old_keys = common;
  old_keys["rope_theta"] = 1e6;
  old_keys["rope_local_base_freq"] = 1e4;
  old_keys["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  json new_keys = common;
  new_keys["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  EXPECT_EQ(Described(old_keys), Described(new_keys));
  const auto config = Read(old_keys);
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  EXPECT_DOUBLE_EQ(spec.attention_scale, 1 / std::sqrt(17.0));
  EXPECT_TRUE(spec.norm_weight_plus_one);
  EXPECT_FALSE(spec.v_norm);
  EXPECT_FALSE(spec.layer_scalar);
  EXPECT_EQ(spec.layers[5].rope.factor, 8.0);
  EXPECT_EQ(spec.layers[5].rope.rotated_pairs, 6);
  EXPECT_EQ(spec.layers[6].rope.factor, 1.0);
}

// Hub files of the larger Gemma 3 hold little more than sizes.
TEST(Config, AbsentKeysHaveTheClassDefaults) {
  const auto gemma3 = Read({{"model_type", "gemma3"},
                            {"text_config",
                             {{"model_type", "gemma3_text"},
                              {"hidden_size", 2560},
                              {"intermediate_size", 10240},
                              {"num_hidden_layers", 34},
                              {"sliding_window", 1024}}}});
  ASSERT_TRUE(gemma3.ok()) << gemma3.status();
  EXPECT_EQ(gemma3->spec.display_name, "Gemma 3 4B");
  EXPECT_EQ(gemma3->spec.vocab, 262208);
  EXPECT_EQ(gemma3->spec.layers[0].q_heads, 8);
  EXPECT_EQ(gemma3->spec.layers[0].kv_heads, 4);
  const auto plain = Read({{"model_type", "gemma4_text"}});
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->spec.ple_dim, 256);
  const auto unified = Read({{"model_type", "gemma4_unified_text"}});
  ASSERT_TRUE(unified.ok()) << unified.status();
  EXPECT_EQ(unified->spec.ple_dim, 0);
  EXPECT_EQ(unified->spec.layers[0].window, 1024);
}

TEST(Config, GenerationConfigSuggestsAndDecidesTheEndTokens) {
  const TempFolder folder;
  const std::string path = folder.Write("config.json", Newest().dump());
  folder.Write("generation_config.json",
               R"({"eos_token_id": [1, 6, 5], "do_sample": true, "temperature": 0.5, "top_k": 64,
                   "top_p": 0.95, "suppress_tokens": [3]})");
  const auto config = ReadModelConfig(path);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.eos_ids, (std::vector<TokenId>{1, 6, 5}));
  EXPECT_EQ(config->generation.temperature, 0.5f);
  EXPECT_EQ(config->generation.top_k, 64);
  EXPECT_EQ(config->generation.top_p, 0.95f);
  EXPECT_EQ(config->generation.do_sample, true);
  EXPECT_EQ(config->generation.suppress_tokens, std::vector<TokenId>{3});
  folder.Write("generation_config.json", R"({"temperature": "hot"})");
  const absl::Status bad = ReadModelConfig(path).status();
  EXPECT_THAT(std::string(bad.message()), HasSubstr("temperature is \"hot\""));
}

struct Refused {
  const char* name;
  const char* key;      // set in Newest() ...
  const char* value;    // ... to this JSON
  const char* message;  // what the error must say
};
class RefusedConfig : public testing::TestWithParam<Refused> {};
INSTANTIATE_TEST_SUITE_P(
    All, RefusedConfig,
    testing::Values(
        Refused{"type", "model_type", "\"llama\"", "is 'llama'; supported are gemma4, gemma4_text"},
        Refused{"no_type", "model_type", "null", "model_type is missing"},
        Refused{"type_number", "model_type", "7", "expected a string"},
        Refused{"zero", "hidden_size", "0", "hidden_size is 0, expected a whole number from 1"},
        Refused{"negative", "num_attention_heads", "-4", "num_attention_heads is -4"},
        Refused{"fraction", "intermediate_size", "20.5", "intermediate_size is 20.5"},
        Refused{"huge", "vocab_size", "99999999999999999999999", "vocab_size is"},
        Refused{"overflow", "hidden_size", "9223372036854775807", "hidden_size is"},
        Refused{"text", "head_dim", "\"12\"", "head_dim is \"12\""},
        Refused{"odd_head", "head_dim", "13", "head size 13 is odd"},
        Refused{"divide", "num_key_value_heads", "3", "4 query heads are not a multiple of 3"},
        Refused{"layers", "num_hidden_layers", "7", "layer_types has 6 entries for 7 layers"},
        Refused{"many_layers", "num_hidden_layers", "1000000000", "expected a whole number"},
        Refused{"kinds", "layer_types", "[1,2,3,4,5,6]", "layer_types has an entry"},
        Refused{"kinds_type", "layer_types", "\"full\"", "layer_types has"},
        Refused{"shared", "num_kv_shared_layers", "6", "6 of 6 layers share"},
        Refused{"shared_kind", "num_kv_shared_layers", "4", "no full layer before layer 2"},
        Refused{"top_k", "top_k_experts", "6", "experts per token is 6, expected 1 to 5"},
        Refused{"no_experts", "num_experts", "null", "num_experts is missing"},
        Refused{"window", "sliding_window", "0", "sliding_window is 0"},
        Refused{"bias", "attention_bias", "true", "biases are not supported"},
        Refused{"activation", "hidden_activation", "\"silu\"", "hidden_activation is 'silu'"},
        Refused{"direction", "use_bidirectional_attention", "\"all\"",
                "not a model that generates"},
        Refused{"eps", "rms_norm_eps", "-1", "rms_norm_eps is -1"},
        Refused{"rope", "rope_parameters", R"({"full_attention": {"rope_type": "yarn"}})",
                "rope_type is 'yarn'"},
        Refused{"rope_type", "rope_parameters", "[1]", "expected an object"},
        Refused{"per_layer", "per_layer_config", R"({"6": {"head_dim": 20}})",
                "is not an object for one of layers 0 to 5"},
        Refused{"per_layer_key", "per_layer_config", R"({"2": {"hidden_size": 20}})",
                "hidden_size is not a size that may differ"},
        Refused{"eos", "eos_token_id", "[1, -2]", "has -2, expected token ids"},
        Refused{"nested", "text_config", "[]", "text_config is [], expected an object"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(RefusedConfig, SaysWhichKeyAndWhy) {
  json config = Newest();
  config[GetParam().key] = json::parse(GetParam().value);
  const absl::Status status = Read(config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
}

// Every size may be within its limit and the model still be absurd.
TEST(Config, RefusesSizesWhoseProductIsAbsurd) {
  json config = Newest();
  config.erase("layer_types");
  config.erase("per_layer_config");
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, int64_t>>{{"num_hidden_layers", 1024},
                                                    {"hidden_size", 1 << 18},
                                                    {"num_experts", 4096},
                                                    {"moe_intermediate_size", 1 << 22},
                                                    {"vocab_size", 1 << 26}}) {
    config[key] = value;
  }
  const absl::Status status = Read(config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("parameters, more than"));
}

TEST(Config, RefusesWhatIsNoJson) {
  const TempFolder folder;
  for (const char* text : {"{", "[]", "{\"model_type\": }", "\xff\xfe", "nul"}) {
    EXPECT_FALSE(ReadModelConfig(folder.Write("config.json", text)).ok()) << text;
  }
  EXPECT_EQ(ReadModelConfig(folder.path() + "/absent.json").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace lapidary
