"""The models that gpu.py measures: their real config values, and what arithmetic says of them.

No weights: speed does not depend on them, so vLLM makes them up (``load_format="dummy"``) and a pair is two
directories with a config.json each. Sizes in bytes are for bfloat16, two bytes a number.
"""

import json
from pathlib import Path
from typing import Any

from models import Shape

BYTES = 2

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3-8b": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "vocab_size": 128256,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "llama-2-7b": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
    },
    "qwen3-8b": _LLAMA
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
}
"""config.json of Meta-Llama-3-8B, Llama-2-7b-hf and Qwen3-8B, as far as speed and shapes go."""


def config_of(name: str, *, smoke: bool) -> dict[str, Any]:
    """A model's config; ``smoke`` makes it tiny and leaves its family and its kind of attention."""
    config = CONFIGS[name]
    if not smoke:
        return config
    grouped = config["num_key_value_heads"] < config["num_attention_heads"]
    small = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2 if grouped else 4, "head_dim": 32, "vocab_size": 2048}
    return {**config, **small, "bos_token_id": 1, "eos_token_id": 2}


def write_pair(config: dict[str, Any], directory: Path) -> tuple[str, str]:
    """PT's and FT's directory, the same config in both."""
    paths = []
    for side in ("pt", "ft"):
        (directory / side).mkdir(parents=True)
        (directory / side / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        paths.append(str(directory / side))
    return paths[0], paths[1]


def shape_of(config: dict[str, Any]) -> Shape:
    """The sizes that FLOPs follow from."""
    heads = config["num_attention_heads"]
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ffn=config["intermediate_size"],
    )


def parameters(config: dict[str, Any]) -> dict[str, int]:
    """Numbers in the decoder layers, and in the embedding (the head is as large, and apart)."""
    shape = shape_of(config)
    projections = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    norms = 2 * shape.hidden + (2 * shape.head_dim if config["model_type"] == "qwen3" else 0)
    layer = projections + 3 * shape.hidden * shape.ffn + norms
    return {"layers": shape.layers * layer, "embedding": config["vocab_size"] * shape.hidden}


def kv_bytes_per_token(shape: Shape, models: int) -> int:
    """Keys and values of one token, in all layers of one model or two."""
    return models * 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES


def prefill_flops(shape: Shape, length: float) -> float:
    """FLOPs a token of one model's prefill, prompts of ``length``; embedding and head left out."""
    return shape.layers * shape.layer_flops(length)[0]


def work(shape: Shape, length: float) -> dict[str, float]:
    """What each way to score computes, in prefills of FT alone."""
    return {"stock": 1.0, "tuco": 1 / shape.bound(length), "two passes": 2.0, "hugging face": 2.0}


def mfu(flops_per_token: float, tokens_per_second: float, ceiling: float) -> float:
    """The fraction of a ceiling (FLOP/s) that is reached."""
    return flops_per_token * tokens_per_second / ceiling
