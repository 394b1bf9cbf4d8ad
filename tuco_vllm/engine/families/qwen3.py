"""Qwen3 (dense): queries and keys are RMS-normalised per head before rope.

Upstream: vllm/model_executor/models/qwen3.py.
"""

from typing import Any

from torch import Tensor, nn

from tuco_vllm.engine import rows_layer
from tuco_vllm.engine.compat import (
    Qwen3DecoderLayer,
    Qwen3ForCausalLM,
    Qwen3MLP,
    Qwen3Model,
    RMSNorm,
    VllmConfig,
)

StockModel = Qwen3ForCausalLM
MAPPER = Qwen3Model.hf_to_vllm_mapper


def stock_layer(vllm_config: VllmConfig, layer: int, prefix: str) -> nn.Module:
    """vLLM's own decoder layer."""
    config = vllm_config.model_config.hf_config
    return Qwen3DecoderLayer(
        config,
        vllm_config.cache_config,
        vllm_config.quant_config,
        prefix=prefix,
        # Upstream's model refuses windows on some layers only; its layer can have them.
        per_layer_sliding_window=rows_layer.sliding_window(config, layer),
    )


class RowsAttention(rows_layer.RowsAttention):
    """Adds the norms of single heads, before rope."""

    def __init__(self, vllm_config: VllmConfig, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, config, *args, **kwargs)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def prepare_query(self, positions_R: Tensor, query_RQ: Tensor) -> Tensor:
        """Norm, then rope."""
        return super().prepare_query(positions_R, self._per_head(self.q_norm, query_RQ))

    def prepare_key(self, positions_T: Tensor, key_TK: Tensor) -> Tensor:
        """Norm, then rope."""
        return super().prepare_key(positions_T, self._per_head(self.k_norm, key_TK))

    def _per_head(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.reshape(*x.shape[:-1], -1, self.head_dim)).view(x.shape)


class RowsLayer(rows_layer.RowsLayer):
    """One layer on rows."""

    attention_cls = RowsAttention

    @staticmethod
    def build_mlp(config: Any, prefix: str) -> nn.Module:
        """vLLM's own MLP."""
        return Qwen3MLP(config.hidden_size, config.intermediate_size, config.hidden_act, prefix=prefix)
