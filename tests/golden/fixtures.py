"""The tiny checkpoints: two of every family, one awkward and one with shapes a GPU kernel likes.

The awkward ones have head sizes down to 12, odd windows, widths and vocabularies without a factor
of 16, and kv heads that neither 2 nor 4 ranks divide. Between them the set covers flat and nested
configurations, both key styles, fp32 and bf16 storage, one and several files, towers for images and
audio, and the dead K/V tensors that the released E models carry.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fixture:
    name: str
    family: str
    kind: str  # key of make_models.CLASSES
    text: dict  # fields of the text configuration
    towers: dict = dataclasses.field(default_factory=dict)  # other fields of the outer configuration
    storage: str = "bf16"
    shard_bytes: int = 1 << 30
    released_keys: bool = False  # write the keys of the released files, not transformers' newest
    dead_kv: bool = False  # add the K/V tensors that KV-shared layers do not use
    tokenizer: bool = False
    long_prompt: int = 150


def layer_types(pattern):
    return [{"S": "sliding_attention", "F": "full_attention"}[c] for c in pattern]


def gemma4_text(pattern, global_head_dim, global_kv_heads=None, sliding_theta=1e4, full_theta=1e6,
                partial=0.25, **fields):
    """Fields of a Gemma 4 text configuration with the constants that all released sizes share."""
    return dict(
        num_hidden_layers=len(pattern),
        layer_types=layer_types(pattern),
        global_head_dim=global_head_dim,
        num_global_key_value_heads=global_kv_heads,
        final_logit_softcapping=30.0,
        max_position_embeddings=1024,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": sliding_theta},
            "full_attention": {"rope_type": "proportional", "rope_theta": full_theta,
                               "partial_rotary_factor": partial},
        },
        **fields,
    )


TINY_VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                   num_key_value_heads=2, head_dim=8, patch_size=4, position_embedding_size=20)
TINY_AUDIO = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, output_proj_dims=16,
                  subsampling_conv_channels=[4, 4], conv_kernel_size=3)
TINY_UNIFIED_VISION = dict(patch_size=2, pooling_kernel_size=2, mm_embed_dim=42, mm_posemb_size=12,
                           output_proj_dims=42)
TINY_UNIFIED_AUDIO = dict(audio_embed_dim=20)

FIXTURES = [
    Fixture(
        "dense-awkward", "31B-like", "gemma4_flat",
        gemma4_text("SSFSF", global_head_dim=20, global_kv_heads=1, attention_k_eq_v=True,
                    vocab_size=211, hidden_size=54, intermediate_size=75, num_attention_heads=9,
                    num_key_value_heads=3, head_dim=12, sliding_window=13,
                    hidden_size_per_layer_input=0, vocab_size_per_layer_input=211),
        storage="fp32", shard_bytes=200_000),
    Fixture(
        "dense-gpu", "31B-like", "gemma4_nested",
        gemma4_text("SSFSSF", global_head_dim=128, global_kv_heads=1, attention_k_eq_v=True,
                    vocab_size=512, hidden_size=64, intermediate_size=128, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=64, sliding_window=32,
                    hidden_size_per_layer_input=0, vocab_size_per_layer_input=512,
                    use_bidirectional_attention="vision"),
        towers=dict(vision_config=TINY_VISION, audio_config=None),
        released_keys=True, tokenizer=True, long_prompt=530),
    Fixture(
        "moe-awkward", "26B-like", "gemma4_nested",
        gemma4_text("SFSF", global_head_dim=28, global_kv_heads=3, attention_k_eq_v=True,
                    vocab_size=157, hidden_size=60, intermediate_size=34, num_attention_heads=6,
                    num_key_value_heads=2, head_dim=14, sliding_window=9,
                    hidden_size_per_layer_input=0, vocab_size_per_layer_input=157,
                    enable_moe_block=True, num_experts=7, top_k_experts=3,
                    moe_intermediate_size=19),
        towers=dict(vision_config=None, audio_config=None)),
    Fixture(
        "moe-gpu", "26B-like", "gemma4_nested",
        gemma4_text("SSFSF", global_head_dim=128, global_kv_heads=1, attention_k_eq_v=True,
                    vocab_size=512, hidden_size=64, intermediate_size=96, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=64, sliding_window=32,
                    hidden_size_per_layer_input=0, vocab_size_per_layer_input=512,
                    enable_moe_block=True, num_experts=12, top_k_experts=3,
                    moe_intermediate_size=32),
        towers=dict(vision_config=TINY_VISION, audio_config=None),
        shard_bytes=600_000, released_keys=True, tokenizer=True),
    Fixture(
        "ple-awkward", "E-like", "gemma4_flat",
        gemma4_text("SSFSSFSF", global_head_dim=18, vocab_size=183, hidden_size=50,
                    intermediate_size=37, num_attention_heads=6, num_key_value_heads=3, head_dim=12,
                    sliding_window=11, hidden_size_per_layer_input=10,
                    vocab_size_per_layer_input=191, num_kv_shared_layers=4,
                    use_double_wide_mlp=True, partial=0.5),
        released_keys=True),
    Fixture(
        "ple-gpu", "E-like", "gemma4_nested",
        gemma4_text("SSSFSSSF", global_head_dim=128, vocab_size=512, hidden_size=64,
                    intermediate_size=96, num_attention_heads=4, num_key_value_heads=1, head_dim=64,
                    sliding_window=32, hidden_size_per_layer_input=32,
                    vocab_size_per_layer_input=512, num_kv_shared_layers=4,
                    use_double_wide_mlp=True),
        towers=dict(vision_config=TINY_VISION, audio_config=TINY_AUDIO),
        released_keys=True, dead_kv=True, tokenizer=True),
    Fixture(
        "unified-awkward", "12B-like", "unified_nested",
        gemma4_text("SFSSF", global_head_dim=28, global_kv_heads=2, attention_k_eq_v=True,
                    vocab_size=233, hidden_size=42, intermediate_size=66, num_attention_heads=10,
                    num_key_value_heads=5, head_dim=12, sliding_window=17),
        towers=dict(vision_config=TINY_UNIFIED_VISION, audio_config=TINY_UNIFIED_AUDIO)),
    Fixture(
        "unified-gpu", "12B-like", "unified_flat",
        gemma4_text("SSFSF", global_head_dim=128, global_kv_heads=1, attention_k_eq_v=True,
                    vocab_size=384, hidden_size=64, intermediate_size=128, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=64, sliding_window=24),
        released_keys=True),
    Fixture(
        "gemma3-awkward", "Gemma-3-like", "gemma3_flat",
        dict(vocab_size=199, hidden_size=60, intermediate_size=50, num_hidden_layers=5,
             layer_types=layer_types("SFSSS"), num_attention_heads=6, num_key_value_heads=3,
             head_dim=12, query_pre_attn_scalar=17, sliding_window=9, max_position_embeddings=1024,
             rope_parameters={
                 "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                 "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}),
        storage="fp32"),
    Fixture(
        "gemma3-gpu", "Gemma-3-like", "gemma3_flat",
        dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=7,
             layer_types=layer_types("SSFSSFS"), num_attention_heads=4, num_key_value_heads=1,
             head_dim=64, query_pre_attn_scalar=64, sliding_window=32,
             max_position_embeddings=1024,
             rope_parameters={
                 "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                 "full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
        released_keys=True, tokenizer=True),
]
