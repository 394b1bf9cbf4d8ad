"""An attention's way to queries, keys and values: q of some rows, k and v of all tokens, each with its rope.

A stock attention projects q, k and v by one weight, splits, turns q and k by their positions, and attends.
Here the projection returns something that is split into tensors of different lengths, and the rope turns each
by its own positions. The work is that of the rows, for q, and of all tokens, for k and v.

Shape suffixes: T tokens, R rows, Q and K the sizes of all heads' queries and keys.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tuco_vllm.engine.compat import LinearMethodBase, Phi3LongRoPEScaledRotaryEmbedding, VllmConfig
from tuco_vllm.engine.layer_structure import expect_positions
from tuco_vllm.engine.wide_rows import Float32Method, float32_rope, mix, part_of


class Both(NamedTuple):
    """A quantity of all tokens and of the rows."""

    tokens: Tensor
    rows: Tensor


class Projected(NamedTuple):
    """What ``qkv.split`` is called on."""

    query_RQ: Tensor
    key_TK: Tensor
    value_TK: Any
    """A tensor, or what an attention that is opened takes for one (``adapter_layers.Values``)."""

    def split(self, sizes: Any, dim: int = -1) -> tuple[Tensor, Tensor, Any]:
        """They are split."""
        return self.query_RQ, self.key_TK, self.value_TK


def cut_projections(attention: Any, vllm_config: VllmConfig, wide: bool) -> None:
    """Before the weights load. ``wide``: the rows are float32, to the end of the rope (``wide_rows``)."""
    cut_qkv(attention.qkv_proj, wide)
    expect_positions(attention.rotary_emb, vllm_config.model_config.max_model_len)
    turn_apart(attention, float32_rope(attention.rotary_emb) if wide else None)
    _settle_table(attention.rotary_emb, vllm_config.model_config.dtype)


def _settle_table(rope: Any, dtype: torch.dtype) -> None:
    """Give a rope's table the dtype of the keys that it turns, as its first uncompiled run would.

    gpt-oss' is float32. Compiled code goes on reading as such what an uncompiled step (``own_stream``) has
    put in its place, which no guard notices.
    """
    table = getattr(rope, "cos_sin_cache", None)
    if table is not None and table.dtype != dtype:
        rope.cos_sin_cache = table.to(dtype)


def turn_apart(attention: Any, turn_rows: Any = None) -> None:
    """Let an attention's rope turn queries and keys each by positions of their own, ``Both``; queries by
    ``turn_rows`` where that is given."""
    attention.rotary_emb = copy.copy(attention.rotary_emb)  # vLLM shares one among layers and models
    mix(attention.rotary_emb, _RowsRope)
    attention.rotary_emb.turn_rows = turn_rows


def cut_qkv(qkv: Any, wide: bool) -> None:
    """Let a projection of q, k and v take ``Both`` and give ``Projected``."""
    qkv.quant_method = _CutMethod(qkv, wide)
    mix(qkv, _RowsQKV)


def query_only(attention: Any) -> None:
    """After ``cut_projections``: keys and values are in the cache already."""
    mix(attention.qkv_proj, _QueryOnly)


class _RowsQKV:
    """q of the rows, k and v of all tokens."""

    def forward(self: Any, normed: Both) -> tuple[Projected, None]:
        query_RQ = self.quant_method.of_query.apply(self.q_part, normed.rows, self.q_part.bias)
        key_value_T2K = self.quant_method.stock.apply(self.kv_part, normed.tokens, self.kv_part.bias)
        return Projected(query_RQ, *key_value_T2K.chunk(2, dim=-1)), None


class _QueryOnly:
    """q of the rows; in place of keys and values, which are in the cache, what came after they got there."""

    def forward(self: Any, normed: Both) -> tuple[Projected, None]:
        query_RQ = self.quant_method.of_query.apply(self.q_part, normed.rows, self.q_part.bias)
        stand_in_RK = normed.tokens[:, :1].repeat(1, self.num_kv_heads * self.head_size)
        return Projected(query_RQ, stand_in_RK, stand_in_RK), None


class _CutMethod(LinearMethodBase):
    """Parts the weight that a stock loader has filled: q's rows and kv's, views of it, a product each."""

    def __init__(self, qkv: Any, wide: bool) -> None:
        self.stock = qkv.quant_method
        self.of_query = Float32Method() if wide else self.stock
        self.q_size = qkv.num_heads * qkv.head_size

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """They have been created."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """vLLM calls this once, on every module's method."""
        layer.q_part = part_of(layer, stop=self.q_size)
        self.of_query.process_weights_after_loading(layer.q_part)
        if not isinstance(layer, _QueryOnly):
            layer.kv_part = part_of(layer, start=self.q_size)
            self.stock.process_weights_after_loading(layer.kv_part)
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # a CPU has packed copies
        layer.bias = None

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The whole product is never taken."""
        raise NotImplementedError


class _RowsRope:
    """Each at its own positions."""

    def forward(self: Any, positions: Any, query_RQ: Tensor, key_TK: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(positions, Both):
            stock: Any = super()
            return stock.forward(positions, query_RQ, key_TK)
        turn_rows = self.turn_rows or self._turn
        # Attention takes queries of the cache's dtype.
        query_RQ = turn_rows(positions.rows, query_RQ).to(key_TK.dtype)
        return query_RQ, self._turn(positions.tokens, key_TK)

    def _turn(self: Any, positions: Tensor, heads: Tensor) -> Tensor:
        stock: Any = super()
        # The one rope that insists on a key gets a head of the query; it writes into neither.
        key = heads[:, : self.head_size] if isinstance(self, Phi3LongRoPEScaledRotaryEmbedding) else None
        return stock.forward(positions, heads, key)[0]
