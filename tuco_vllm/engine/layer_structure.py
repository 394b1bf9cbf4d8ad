"""What a decoder layer of vLLM's must look like for ``stock_layers`` to be right: anything else is refused.

Said by name when a model is built, before weights load. A table of families (``tuco_vllm.families``) stands
before it: where a family's code meets q with a tensor of T tokens, one row would broadcast without a word.
"""

import inspect
from typing import Any

import torch
from torch import nn

from tuco_vllm.engine.compat import (
    GemmaRMSNorm,
    Phi3LongRoPEScaledRotaryEmbedding,
    QKVParallelLinear,
    RMSNorm,
    RotaryEmbeddingBase,
    current_platform,
)


def norms_of(layer: Any) -> list[Any]:
    """The norms that the stream passes, post-norms included."""
    accepted = list(inspect.signature(type(layer).forward).parameters)[1:4]
    if set(accepted) != {"positions", "hidden_states", "residual"}:
        raise _misfit(layer, f"takes {', '.join(accepted)}, not positions, hidden_states, residual")
    norms = [child for child in layer.children() if type(child) in (RMSNorm, GemmaRMSNorm)]
    if len(norms) not in (2, 4):
        raise _misfit(layer, f"has {len(norms)} RMS norms, not 2 or 4")
    return norms


def attention_of(layer: Any) -> Any:
    """The layer's one attention, with one qkv projection, one rope and one cache."""
    having = [
        child for child in layer.children() if type(getattr(child, "qkv_proj", None)) is QKVParallelLinear
    ]
    if len(having) != 1:
        raise _misfit(layer, f"has {len(having)} attentions with one projection of q, k and v, not 1")
    attention = having[0]
    if attention.qkv_proj.head_size != attention.qkv_proj.v_head_size:
        raise _misfit(layer, "has values of another width than keys")
    if not isinstance(
        getattr(attention, "rotary_emb", None), RotaryEmbeddingBase | Phi3LongRoPEScaledRotaryEmbedding
    ):
        raise _misfit(layer, "has no rotary embedding of a known kind")
    if getattr(getattr(attention, "attn", None), "attn_type", None) != "decoder":
        raise _misfit(layer, "has no causal attention over one cache")
    return attention


def expect_positions(rope: Any, max_model_len: int) -> None:
    """Reading past a rope's table is undefined."""
    if isinstance(rope, Phi3LongRoPEScaledRotaryEmbedding):
        known = rope.max_position_embeddings
    else:
        known = rope.cos_sin_cache.shape[0]
    if known < max_model_len:
        raise ValueError(
            f"the pre-trained model's rope covers {known} positions, the engine allows {max_model_len}: set "
            f"max_model_len to {known} or less"
        )


def expect_rotation(model: nn.Module, dtype: torch.dtype) -> None:
    """On a CPU vLLM's rope turns eight 16-bit pairs at a time, also those behind the last: it writes where
    others' memory is (csrc/cpu/pos_encoding.cpp)."""
    if dtype == torch.float32 or not current_platform.is_cpu():
        return
    for rope in model.modules():
        if isinstance(rope, RotaryEmbeddingBase) and rope.rotary_dim % 16:
            raise ValueError(
                f"vLLM cannot turn {rope.rotary_dim} of a head's {rope.head_size} dimensions in 16 bits on a "
                "CPU, only a multiple of 16: set dtype to float32"
            )


def _misfit(layer: Any, why: str) -> ValueError:
    return ValueError(f"vLLM's {type(layer).__name__} does not fit TuCo's executor: it {why}")
