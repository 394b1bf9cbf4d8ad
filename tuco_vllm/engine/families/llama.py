"""Llama, and what is trained from it under the same architecture (Vicuna among them).

Upstream: vllm/model_executor/models/llama.py.
"""

from typing import Any

from torch import nn

from tuco_vllm.engine import rows_layer
from tuco_vllm.engine.compat import LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel, VllmConfig

StockModel = LlamaForCausalLM
MAPPER = LlamaModel.hf_to_vllm_mapper


def stock_layer(vllm_config: VllmConfig, layer: int, prefix: str) -> nn.Module:
    """vLLM's own decoder layer."""
    return LlamaDecoderLayer(vllm_config, prefix)


class RowsLayer(rows_layer.RowsLayer):
    """One layer on rows."""

    @staticmethod
    def build_mlp(config: Any, prefix: str) -> nn.Module:
        """vLLM's own MLP."""
        return LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            bias=getattr(config, "mlp_bias", False),
            prefix=prefix,
        )
