"""A pair's two models as vLLM itself builds and loads them, each by its own config."""

import copy
from typing import Any

from torch import Tensor, nn

from tuco_vllm.engine.backend_layers import give_form
from tuco_vllm.engine.compat import VllmConfig, init_vllm_registered_model
from tuco_vllm.engine.heads import HEAD, PutAside
from tuco_vllm.engine.layer_structure import expect_rotation


def ft_model(vllm_config: VllmConfig, architecture: str, prefix: str) -> Any:
    """FT: the engine's own config, under the name that ours stood in for."""
    hf_config = vllm_config.model_config.hf_text_config
    model = init_vllm_registered_model(
        vllm_config, hf_config=hf_config, architectures=[architecture], prefix=prefix
    )
    give_form(model)
    expect_rotation(model, vllm_config.model_config.dtype)
    return model


def pt_model(vllm_config: VllmConfig, pt_config: Any, architecture: str, prefix: str) -> tuple[Any, PutAside]:
    """PT's layers, everything by PT's config; its embedding, last norm and head are put aside."""
    text = pt_config.get_text_config()
    model = init_vllm_registered_model(
        _for_pt(vllm_config, text), hf_config=text, architectures=[architecture], prefix=prefix
    )
    give_form(model)
    expect_rotation(model, vllm_config.model_config.dtype)
    embedding = "embedding" if hasattr(decoder_of(model), "embedding") else "embed_tokens"  # gpt-oss's name
    return model, PutAside(model, {"embed_tokens": f"model.{embedding}", **HEAD})


def first_stream(model: Any, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """x_0 ``[T, H]``: the embeddings, scaled where a family does that in its forward (Granite)."""
    x_TH = inputs_embeds if inputs_embeds is not None else model.embed_input_ids(input_ids)
    scale = getattr(model.config, "embedding_multiplier", None)
    return x_TH if scale is None else x_TH * scale


def decoder_of(model: Any) -> Any:
    """The part of a stock model that has ``embed_tokens``, ``layers`` and ``norm``."""
    decoder = getattr(model, "model", None)
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise ValueError(
            f"vLLM's {type(model).__name__} does not fit TuCo's executor: it has no model.layers"
        )
    return decoder


def _for_pt(vllm_config: VllmConfig, text: Any) -> VllmConfig:
    """The engine's config with what stock models read of it beside their own config: PT's."""
    _lengthen_rope(text, vllm_config.model_config.max_model_len)
    config = copy.copy(vllm_config)
    config.model_config = copy.copy(vllm_config.model_config)
    config.model_config.hf_text_config = text
    config.cache_config = copy.copy(vllm_config.cache_config)
    # vLLM's engine says so for FT (engine/arg_utils.py): a window here is every layer's that has none.
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    everywhere = set(kinds) == {"sliding_attention"}
    config.cache_config.sliding_window = getattr(text, "sliding_window", None) or None if everywhere else None
    return config


def _lengthen_rope(text: Any, max_model_len: int) -> None:
    """FT may have a longer context than PT. Where positions are only a table (default and llama3 rope) the
    table is made longer; elsewhere one too short is refused (``stock_layers``)."""
    stated = text.rope_parameters or {}
    by_layer = [value for value in stated.values() if isinstance(value, dict)] or [stated]
    if all(rope.get("rope_type", "default") in ("default", "llama3") for rope in by_layer):
        text.max_position_embeddings = max(text.max_position_embeddings, max_model_len)
