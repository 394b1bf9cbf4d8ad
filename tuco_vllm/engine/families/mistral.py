"""Mistral: Llama's layer in a file of its own in vLLM, one window for all layers (0.1: 4096, 0.2: none).

Upstream: vllm/model_executor/models/mistral.py. Its extras (query scaling, conditioned norms) belong to
other architectures that share the file and are refused.
"""

from typing import Any

from torch import nn

from tuco_vllm.engine import rows_layer
from tuco_vllm.engine.compat import (
    LlamaModel,
    MistralDecoderLayer,
    MistralForCausalLM,
    MistralMLP,
    VllmConfig,
)

StockModel = MistralForCausalLM
MAPPER = LlamaModel.hf_to_vllm_mapper


def stock_layer(vllm_config: VllmConfig, layer: int, prefix: str) -> nn.Module:
    """vLLM's own decoder layer."""
    return MistralDecoderLayer(vllm_config, prefix)


class RowsLayer(rows_layer.RowsLayer):
    """One layer on rows."""

    def __init__(self, vllm_config: VllmConfig, config: Any, *args: Any, **kwargs: Any) -> None:
        for extra in ("llama_4_scaling", "ada_rms_norm_t_cond"):
            if getattr(config, extra, None):
                raise ValueError(f"MistralForCausalLM with {extra} is not supported yet")
        super().__init__(vllm_config, config, *args, **kwargs)

    @staticmethod
    def build_mlp(config: Any, prefix: str) -> nn.Module:
        """vLLM's own MLP."""
        return MistralMLP(config.hidden_size, config.intermediate_size, config.hidden_act, prefix=prefix)
