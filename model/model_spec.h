// What a Gemma checkpoint is, as data: one row per decoder layer. Nothing here computes.
//
// Source of the rules: the Hugging Face configuration classes of Gemma 3 and Gemma 4; where two
// spellings of a key exist, model/config_reader.cc accepts both.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/dtype.h"
#include "common/base/ids.h"

namespace lapidary {

enum class ModelFamily { kGemma3, kGemma4 };

// Rotary embedding of one layer kind: dimension i pairs with i + head_dim / 2 and turns by
//   position * theta^(-2 i / head_dim) / factor   for i < rotated_pairs, and not at all beyond.
// The exponent's denominator is the whole head, also when only part of it rotates.
struct RopeSpec {
  double theta = 1e4;
  int rotated_pairs = 0;  // head_dim / 2 when everything rotates
  double factor = 1.0;    // positions are divided by this ("linear" scaling of Gemma 3 >= 4B)
};

struct LayerSpec {
  KvFamily kind = KvFamily::kSliding;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int window = 0;  // keys a query sees, counting itself; 0 on global layers
  RopeSpec rope;
  bool k_eq_v = false;  // no v_proj: v = norm(raw k), K = RoPE(w_k * v)
  int kv_owner = 0;     // layer whose pages are read; its own index unless KV is shared
  int mlp_width = 0;    // of the dense MLP (double on some shared layers of E2B)
};

// Experts beside the dense MLP, the same in every layer. experts == 0: none.
struct MoeSpec {
  int experts = 0;
  int top_k = 0;
  int expert_width = 0;
};

struct ModelSpec {
  ModelFamily family = ModelFamily::kGemma4;
  std::string model_type;  // as the file says: gemma4, gemma4_unified, gemma3_text, gguf:gemma4 ...
  std::string display_name;  // "Gemma 4 31B" where the shape is a released one, else the type

  int hidden = 0;           // M
  int64_t vocab = 0;        // V
  int ple_dim = 0;          // width of the per-layer embeddings, 0: none
  int64_t ple_vocab = 0;    // rows of the per-layer table
  int64_t max_context = 0;  // positions the model was made for
  double norm_eps = 1e-6;
  double attention_scale = 1.0;       // Gemma 3: query_pre_attn_scalar^-1/2
  double final_softcap = 0.0;         // 0: none
  bool norm_weight_plus_one = false;  // true: y = x^ (1 + w). A reader of a GGUF Gemma 3 file,
                                      // which stores 1 + w, sets false.
  bool v_norm = true;                 // weightless RMS norm of V (Gemma 4)
  bool qk_norm = true;
  bool layer_scalar = true;  // one stored factor per layer (Gemma 4)
  MoeSpec moe;
  std::vector<LayerSpec> layers;
  // 32 when the file stores matrices in blocks, which ranks do not cut; 1 otherwise.
  int weight_block = 1;

  // From config.json / generation_config.json / GGUF metadata.
  TokenId bos_id = 2;
  TokenId pad_id = 0;
  std::vector<TokenId> eos_ids;

  bool shares_kv(int layer) const { return layers[layer].kv_owner != layer; }
  // First layer that owns no KV, or layers.size().
  int first_shared_layer() const;
  // Layers of a family that own pages.
  int owning_layers(KvFamily family) const;
};

}  // namespace lapidary
