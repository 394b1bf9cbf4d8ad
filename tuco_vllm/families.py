"""The families that are scored: one row an architecture. An architecture without a row is refused.

Neither is any family code: the executor opens vLLM's own decoder layers (``engine.stock_layers``). A row says
that a tiny random pair of the family matches the float64 oracle there, for scores and for steering, PT and FT
differing in all that ``differs`` names. ``tests/tiny_families.PAIRS`` has the pairs, by the rows' ``pair``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """One architecture."""

    pair: str
    """The family's pair in the tests; variants of it are called ``pair_...``."""
    model_type: str
    """Hugging Face's."""
    known_as: str
    """Models that have it."""
    special: str
    """What its layers have beside Llama's."""
    unstated: Mapping[str, int] = {}
    """What transformers takes for a size that config.json does not have, where that is a number."""
    float32_rows: bool = True
    """Whether rows can be float32 where the model is not: vLLM's experts take the model's dtype only, and
    for layers of its Transformers backend (``engine.backend_layers``) it is not built."""
    adapted_embeddings: bool = False
    """Whether vLLM takes LoRA of its embedding and head."""
    built_in: Mapping[str, Any] = {}
    """What vLLM's code takes for granted: config.json must say nothing else. Lists repeat."""
    text_half: str | None = None
    """The architecture of the text half, where a checkpoint has others: all that is loaded of it."""


FAMILIES = {
    "LlamaForCausalLM": Family(
        "llama",
        "llama",
        "Llama 2 and 3, Vicuna, SmolLM2",
        "scaled rope, biases, tied embeddings",
        adapted_embeddings=True,
    ),
    "MistralForCausalLM": Family(
        "mistral", "mistral", "Mistral, Zephyr", "a window", {"num_key_value_heads": 8}
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2", "qwen2", "Qwen2, Qwen2.5", "biases of q, k and v, a window", {"num_key_value_heads": 32}
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        "qwen3",
        "Qwen3",
        "norms of q and k",
        {"num_key_value_heads": 32, "head_dim": 128},
        adapted_embeddings=True,
    ),
    "GemmaForCausalLM": Family(
        "gemma",
        "gemma",
        "Gemma, Zephyr-Gemma",
        "(1 + w) norms, scaled embeddings",
        {"num_key_value_heads": 16, "head_dim": 256},
    ),
    "Gemma2ForCausalLM": Family(
        "gemma2",
        "gemma2",
        "Gemma 2",
        "four norms, soft-caps, a query scale, windows on some layers",
        {"num_key_value_heads": 4, "head_dim": 256},
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3",
        "gemma3_text",
        "Gemma 3 (text)",
        "Gemma 2's, a rope for each kind of layer, norms of q and k",
        {"num_key_value_heads": 4, "head_dim": 256},
    ),
    "Gemma3ForConditionalGeneration": Family(
        "gemma3_mm",
        "gemma3",
        "Gemma 3 4B to 27B (text)",
        "as Gemma 3; the vision tower is left out, images are refused",
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
        text_half="Gemma3ForCausalLM",
    ),
    "Phi3ForCausalLM": Family(
        "phi3",
        "phi3",
        "Phi-3, Phi-4",
        "fused checkpoint, rope of part of a head, long rope, a window",
        adapted_embeddings=True,
    ),
    "GraniteForCausalLM": Family(
        "granite",
        "granite",
        "Granite 3",
        "scaled embeddings, queries, A and M, added by the layer itself",
        adapted_embeddings=True,
    ),
    "MixtralForCausalLM": Family(
        "mixtral",
        "mixtral",
        "Mixtral",
        "experts, a window",
        {"num_key_value_heads": 8},
        float32_rows=False,
    ),
    "Qwen3MoeForCausalLM": Family(
        "qwen3_moe",
        "qwen3_moe",
        "Qwen3-30B-A3B",
        "experts, norms of q and k",
        {"num_key_value_heads": 4},
        float32_rows=False,
    ),
    "GptOssForCausalLM": Family(
        "gpt_oss",
        "gpt_oss",
        "gpt-oss, in bfloat16",
        "experts, sinks, windows on every other layer",
        {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64},
        built_in={
            "rms_norm_eps": 1e-5,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        float32_rows=False,
    ),
    "Olmo2ForCausalLM": Family(
        "olmo2",
        "olmo2",
        "OLMo 2",
        "norms behind attention and MLP alone, norms of q and k",
        float32_rows=False,
    ),
    "Olmo3ForCausalLM": Family(
        "olmo3",
        "olmo3",
        "OLMo 3",
        "OLMo 2's, a rope for each kind of layer, windows on some layers",
        float32_rows=False,
    ),
    "SmolLM3ForCausalLM": Family(
        "smollm3",
        "smollm3",
        "SmolLM3",
        "layers without rope",
        {"num_key_value_heads": 4},
        float32_rows=False,
    ),
}
"""Hugging Face architecture -> its row."""

_STATE = "its {} layers keep a running state, not keys and values, so PT's would have to scan every token"
_REASONS = {
    "is_encoder_decoder": "it is an encoder and a decoder; the decomposition is of one stream",
    "vision_config": "it has a vision tower; only text models are scored",
    "audio_config": "it has an audio tower; only text models are scored",
    "kv_lora_rank": "its attention (MLA) caches a latent in place of keys and values",
    "mamba_d_state": _STATE.format("Mamba"),
    "ssm_state_size": _STATE.format("Mamba"),
    "state_size": _STATE.format("Mamba"),
    "linear_num_value_heads": _STATE.format("linear-attention (GDN)"),
    "llama_4_scaling": "it scales queries by position, where TuCo has rows only",
    "ada_rms_norm_t_cond": "its norms depend on time",
    "dual_chunk_attention_config": "dual-chunk attention needs all queries",
}
"""Keys of config.json that, if they say anything, rule a model out, each with the reason."""

_BY_NAME = {
    "PhiForCausalLM": "attention and MLP run side by side",
}
"""Architectures that might be expected, each with the reason why they have no row yet."""


def reason_against(config: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json is not scored, or None."""
    if config.get("is_causal") is False:
        return "its attention looks ahead (is_causal is false)"
    family = FAMILIES.get(architecture_of(config))
    if family and family.text_half:
        config = {"architectures": [family.text_half], **text_of(config)}
    for key, reason in _REASONS.items():
        if config.get(key):
            return reason
    for kind in config.get("layer_types") or []:
        if kind not in ("full_attention", "sliding_attention"):
            return f"it has {kind} layers; full and sliding attention can be cut to rows"
    if family:
        return _reason_of_built_in(family, config)
    return _BY_NAME.get(architecture_of(config), f"supported are {', '.join(FAMILIES)}")


def _reason_of_built_in(family: Family, config: Mapping[str, Any]) -> str | None:
    for key, value in family.built_in.items():
        stated = config.get(key)
        if isinstance(value, list) and stated:
            value = [value[place % len(value)] for place in range(len(stated))]
        if stated is not None and stated != value:
            return f"its {key} is {stated}, and vLLM's code for {family.known_as} takes {value} for granted"
    return None


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that says what the language model is: all of it, or its ``text_config``."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def architecture_of(config: Mapping[str, Any]) -> str:
    """Hugging Face's class name, as config.json states it."""
    stated = config.get("architectures")
    return str(stated[0]) if isinstance(stated, list) and stated else "(none stated)"
