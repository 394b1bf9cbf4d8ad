"""The table of tiny pairs: for each family what PT and FT have beside ``SHAPE``, and differ in.

Both differ in rope theta and eps; each family adds what only it can get wrong (rope scaling, windows,
soft-caps, per-head norms, layers without rope, numbers of experts). ``tiny_models`` makes them.
"""

from typing import Any

from transformers import (
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    GemmaForCausalLM,
    GptOssForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    Olmo2ForCausalLM,
    Olmo3ForCausalLM,
    Phi3ForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
    SmolLM3ForCausalLM,
)

MAX_LEN = 256

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the smallest that vLLM's CPU attention takes
    "max_position_embeddings": MAX_LEN,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def yarn(theta: float, **more: Any) -> dict[str, Any]:
    """Rope stretched from 32 positions."""
    betas = {"beta_fast": 32.0, "beta_slow": 1.0}
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "original_max_position_embeddings": 32,
        **betas,
        **more,
    }


PLAIN_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
FOUR_LAYERS = {"num_hidden_layers": 4, "tie_word_embeddings": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
TINY_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,  # as many as the text half: only one of the two lists is the decoder's
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

PairConfigs = tuple[Any, dict[str, Any], dict[str, Any]]

PAIRS: dict[str, PairConfigs] = {
    "llama": (
        LlamaForCausalLM,
        {"rope_parameters": LLAMA3_ROPE, "rms_norm_eps": 1e-5, "attention_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rms_norm_eps": 1e-6},
    ),
    "llama_mha": (
        LlamaForCausalLM,
        # Prompts longer than PT was made for: its rope goes on, as Hugging Face's does.
        {
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 64,
        },
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "mlp_bias": True},
    ),
    "mistral": (
        MistralForCausalLM,
        {"sliding_window": 24, "rms_norm_eps": 1e-5},
        {
            "sliding_window": None,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "mistral_windowed_ft": (
        MistralForCausalLM,
        {"sliding_window": None, "rms_norm_eps": 1e-5},
        {"sliding_window": 40, "rms_norm_eps": 1e-6},
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        {"rms_norm_eps": 1e-5, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
        {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "gemma": (
        GemmaForCausalLM,
        {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "num_key_value_heads": 1},
        {
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        },
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        {
            **FOUR_LAYERS,
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
        },
        {
            **FOUR_LAYERS,
            "rms_norm_eps": 1e-6,
            "sliding_window": 40,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        {
            **FOUR_LAYERS,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {
            **FOUR_LAYERS,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "rms_norm_eps": 1e-6,
            "sliding_window": 40,
            "query_pre_attn_scalar": 32,
            "rope_parameters": PLAIN_ROPES,
        },
    ),
    "phi3": (
        Phi3ForCausalLM,
        {
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "max_position_embeddings": 4 * MAX_LEN,
            # vLLM takes the long factors for all prompts if an engine allows longer ones than this.
            "original_max_position_embeddings": MAX_LEN,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0 + 0.1 * n for n in range(8)],
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": MAX_LEN,
            },
        },
        {
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 1.0},
        },
    ),
    "granite": (
        GraniteForCausalLM,
        {
            "rms_norm_eps": 1e-5,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.1,
        },
        {
            "rms_norm_eps": 1e-6,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.8,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
        },
    ),
    "mixtral": (
        MixtralForCausalLM,
        {"rms_norm_eps": 1e-5, "num_local_experts": 4, "sliding_window": 24},
        {"rms_norm_eps": 1e-6, "num_local_experts": 6},
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        {**EXPERTS, "rms_norm_eps": 1e-5, "norm_topk_prob": False},
        {
            **EXPERTS,
            "rms_norm_eps": 1e-6,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "gpt_oss": (
        # vLLM has eps, the layers with a window and the constants of its activation built in.
        GptOssForCausalLM,
        {
            "head_dim": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 24,
            "rope_parameters": yarn(1e4, factor=8.0, truncate=False),
        },
        {
            "head_dim": 64,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "sliding_window": 40,
            "rope_parameters": yarn(1e5, factor=16.0, truncate=True),
        },
    ),
    "olmo2": (
        Olmo2ForCausalLM,
        {
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}},
    ),
    "olmo3": (
        Olmo3ForCausalLM,
        {
            **FOUR_LAYERS,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "rope_parameters": {
                "full_attention": yarn(1e4, factor=8.0),
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {
            **FOUR_LAYERS,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "rms_norm_eps": 1e-6,
            "sliding_window": 40,
            "rope_parameters": PLAIN_ROPES,
        },
    ),
    "smollm3": (
        SmolLM3ForCausalLM,
        {
            "rms_norm_eps": 1e-5,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 24,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        {
            "rms_norm_eps": 1e-6,
            "no_rope_layers": [0, 1, 1],
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
}
PAIRS["gemma3_mm"] = (Gemma3ForConditionalGeneration, *PAIRS["gemma3"][1:])
