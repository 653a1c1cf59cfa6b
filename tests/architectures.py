"""
Configurations of tiny models, one per way of attending, caching, normalising or encoding positions.

Sizes are explicit, so a changed default of a library changes nothing here.
"""

from __future__ import annotations

from typing import Any

VOCABULARY_SIZE = 64
PAD, BOS, EOS, IMAGE = 0, 1, 2, 63
# Shorter than every prompt the tests use, so that the window really cuts.
SLIDING_WINDOW = 4

_VOCABULARY = {"vocab_size": VOCABULARY_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_HEADS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GROUPED = _HEADS | {"num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}

DECODER_ONLY: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 16},
    "mistral": _GROUPED | {"sliding_window": SLIDING_WINDOW},
    "gemma2": _GROUPED
    | {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        # transformers chooses this by default from 5.21 on; before, an attention that drops the cap. Remove with 5.20.
        "attn_implementation": "eager",
    },
    "gemma3_text": _GROUPED
    | {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": _GROUPED,
    "cohere": _GROUPED,
    "olmo2": _GROUPED,
    "smollm3": _GROUPED | {"no_rope_layers": [1, 0]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "gpt_neox": _HEADS,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 64},
    # Mixtures of experts.
    "mixtral": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _GROUPED | _EXPERTS | {"head_dim": 8},
    # Attention sinks: a softmax with one more entry than there are keys.
    "gpt_oss": _GROUPED
    | {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    # Latent attention: keys and values of different widths.
    "deepseek_v3": _HEADS
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    # State-space models and hybrids.
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    "mamba2": {
        "hidden_size": 32,
        "state_size": 4,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "falcon_mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    "jamba": _GROUPED
    | {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "bamba": _GROUPED | _MAMBA2 | {"attn_layer_indices": [1]},
    "falcon_h1": _GROUPED | _MAMBA2 | {"head_dim": 8, "mamba_d_ssm": 64},
    "lfm2": _GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_next": _GROUPED
    | _EXPERTS
    | {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "shared_expert_intermediate_size": 32,
    },
    "recurrent_gemma": _GROUPED | {"num_hidden_layers": 3, "head_dim": 8, "lru_width": 32, "attention_window_size": 8},
}

ENCODER_DECODER: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 256,
        "decoder_start_token_id": EOS,
        "forced_eos_token_id": None,
    },
}

_TEXT = {"tie_word_embeddings": False} | _VOCABULARY
_VISION_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
# Image tokens mark the place of the picture's embeddings: 4 of them per picture of 8 x 8 pixels.
VISION_LANGUAGE: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": _TEXT | _GROUPED | {"model_type": "llama"},
        "vision_config": _VISION_TOWER | {"model_type": "clip_vision_model", "projection_dim": 16},
        "image_token_index": IMAGE,
        "image_seq_length": 4,
        "vision_feature_layer": -1,
    },
    "gemma3": {
        "text_config": _TEXT | DECODER_ONLY["gemma3_text"],
        "vision_config": _VISION_TOWER | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": 61,
        "eoi_token_index": 62,
    },
    "qwen2_vl": {
        "text_config": _TEXT
        | _GROUPED
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
        "vision_config": {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
        },
        "image_token_id": IMAGE,
        "vision_start_token_id": 61,
        "vision_end_token_id": 62,
        "video_token_id": 60,
    },
}

ARCHITECTURES: tuple[str, ...] = (*DECODER_ONLY, *ENCODER_DECODER, *VISION_LANGUAGE)

# transformers lets padding through here: bart's encoder numbers its positions from the padding on, and the recurrent
# layers of recurrent_gemma take padding in. Their logits in a left-padded batch are not those of a prompt alone.
LEFT_PADDING_MATTERS = frozenset({"bart", "recurrent_gemma"})

# Keeps its recurrent states in its own modules, where `reorder_cache` does not reach them.
STATE_OUTSIDE_CACHE = frozenset({"recurrent_gemma"})


def config_arguments(architecture: str) -> dict[str, Any]:
    """Return the arguments of `AutoConfig.for_model` for one of [`ARCHITECTURES`]."""
    sizes = (DECODER_ONLY | ENCODER_DECODER | VISION_LANGUAGE)[architecture]
    # Untied, so that scaling the output embedding sets the entropy of the next token and nothing else.
    special = {"tie_word_embeddings": False, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return (special if "text_config" in sizes else _TEXT) | sizes
