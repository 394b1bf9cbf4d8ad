"""Rows in float32 under LoRA adapters: PT's and FT's of each row in one run, beside weights of 16 bits.

As ``wide_rows`` says, a light fine-tune is lost in bfloat16's rounding, and adapters are light. Here FT's run
over all tokens makes the stream, the keys and the values of both (``adapter_layers``); then a second layer of
the same weights runs on the rows in float32, PT's first, FT's behind them, so that every weight is read once
more for both. What FT's have beside PT's is its adapter's product, taken by ourselves: vLLM's own takes rows
in the order of the batch's tokens, and would give them other requests' adapters.

Shape suffixes: T tokens of the batch, R rows, 2R the same rows twice, H hidden size, N slots of adapters.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tuco_kernels import row_linear

from tuco_vllm.engine.adapter_layers import Keys, Parted, Values, opened_attention
from tuco_vllm.engine.compat import LinearBase, LinearMethodBase, VllmConfig
from tuco_vllm.engine.layer_structure import attention_of, norms_of
from tuco_vllm.engine.rows import Selection, rows_backend
from tuco_vllm.engine.rows_projection import Both, Projected, turn_apart
from tuco_vllm.engine.stock_layers import in_one_form, open_norms_on_rows
from tuco_vllm.engine.wide_rows import float32_rope, mix, sharing_cache, twin, widen


class Rows(NamedTuple):
    """The stream on the rows, for a layer that has run on all tokens before.

    ``written_RH`` stands in for FT's keys, which are in the cache (``stock_layers.Again``).
    """

    x_RH: Tensor
    written_RH: Tensor
    of_pt: Keys


class _Normed(NamedTuple):
    x_RH: Tensor
    written_RH: Tensor
    of_pt: Keys


def rows_of_both(layer: Any, vllm_config: VllmConfig, select: Selection, slots: "RowSlots") -> Any:
    """A second layer of a stock one's weights, for float32 rows of PT and FT. Before that one is opened;
    ``adapt`` follows when vLLM has wrapped it."""
    both = twin(layer)
    attention = attention_of(both)
    widen(both, attention)
    norms = norms_of(in_one_form(both))
    open_norms_on_rows(both, vllm_config, wide=True)
    for norm in norms:
        mix(norm, _NormOfBoth)
    turn_apart(attention, float32_rope(attention.rotary_emb))
    attention.attn = sharing_cache(attention.attn, vllm_config)
    attention.attn.attn_backend = rows_backend(attention.attn.attn_backend, select)
    mix(attention.attn, _AttentionOfBoth)
    mix(attention.qkv_proj, _QueriesOfBoth)
    attention.qkv_proj.slots = slots
    return both


def adapt(both: Any, layer: Any, slots: "RowSlots") -> None:
    """Give a layer for rows the adapters of the one that it is a twin of, and PT's cache."""
    for name, module in layer.named_modules():
        if not hasattr(module, "lora_a_stacked"):
            continue
        own: Any = both.get_submodule(name)
        if isinstance(own, _QueriesOfBoth):
            own.adapted = (module,)
        elif isinstance(own, LinearBase):
            own.quant_method = _AdaptedMethod(module, slots)
    opened_attention(both).attn.of_pt = opened_attention(layer).attn.of_pt


class RowSlots:
    """Which adapter each row of the step has: its slot, -1 for none."""

    def __init__(self, most: int, device: Any) -> None:
        self.buffer = torch.full((most,), -1, dtype=torch.long, device=device)

    def set(self, of_tokens_T: Tensor, rows_R: Tensor) -> None:
        """Of the step that runs next."""
        self.buffer[: len(rows_R)] = of_tokens_T[rows_R]

    def product(self, x_RI: Tensor, a_NrI: Tensor, b_NOr: Tensor) -> Tensor:
        """Of each row x the product B A x of its own adapter, ``[R, O]`` float32.

        All slots' A are one matrix. Their B are not: one that is not finite must not reach others' rows.
        """
        count, rank, inputs = a_NrI.shape
        slots_R1 = self.buffer[: x_RI.shape[0], None]
        own_RN = slots_R1 == torch.arange(count, device=slots_R1.device)
        shrunk_RNr = row_linear(x_RI, a_NrI.reshape(count * rank, inputs)).view(-1, count, rank)
        product_RO = x_RI.new_zeros(x_RI.shape[0], b_NOr.shape[1])
        for slot in range(count):
            share_RO = row_linear(shrunk_RNr[:, slot].contiguous(), b_NOr[slot].contiguous())
            product_RO = torch.where(own_RN[:, slot, None], share_RO, product_RO)
        return product_RO


class _AdaptedMethod(LinearMethodBase):
    """A linear layer's product in float32, for PT's rows and, with their adapters' share, for FT's."""

    def __init__(self, adapted: Any, slots: RowSlots) -> None:
        self.adapted, self.slots = adapted, slots

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """They have been created."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[2R, O]``."""
        x = x.float()
        product, rows = row_linear(x, layer.weight, bias), x.shape[0] // 2
        start = 0
        for a, b in zip(self.adapted.lora_a_stacked, self.adapted.lora_b_stacked, strict=True):
            share = self.slots.product(x[rows:], a[:, 0], b[:, 0])
            product[rows:, start : start + share.shape[1]] += share
            start += share.shape[1]
        return product


class _NormOfBoth:
    """Mixed over ``stock_layers._RowsNorm``: PT's and FT's rows are one until attention."""

    def forward(self: Any, x: Any, residual: Any = None) -> Any:
        stock: Any = super()
        if isinstance(x, Rows):
            return _Normed(self._add_and_norm(None, x.x_RH), x.written_RH, x.of_pt)
        if isinstance(residual, Rows):
            of_pt, of_ft = x.chunk(2)
            x_RH = residual.x_RH
            return self._add_and_norm(x, torch.cat([x_RH, x_RH])), Parted(of_ft, of_pt, x_RH)
        return stock.forward(x, residual)


class _QueriesOfBoth:
    """PT's queries, and FT's, which have their adapters' share; keys are in the cache, or at hand."""

    adapted: Any
    """The stock layer's projection, as vLLM has wrapped it; in a tuple."""

    def forward(self: Any, normed: _Normed) -> tuple[Projected, None]:
        size, [adapted] = self.num_heads * self.head_size, self.adapted
        bias = None if self.bias is None else self.bias[:size]
        query_RQ = row_linear(normed.x_RH, self.weight[:size], bias)
        a, b = adapted.lora_a_stacked[0][:, 0], adapted.lora_b_stacked[0][:, 0, :size]
        both = torch.cat([query_RQ, query_RQ + self.slots.product(normed.x_RH, a, b)])
        stand_in_RK = normed.written_RH[:, :1].repeat(1, self.num_kv_heads * self.head_size)
        return Projected(both, stand_in_RK, Values(stand_in_RK, normed.of_pt)), None


class _AttentionOfBoth:
    """PT's rows write and read PT's cache; FT's read what FT's run over all tokens has written."""

    def forward(self: Any, query: Tensor, key: Tensor, value: Values, *_: Any, **__: Any) -> Tensor:
        stock: Any = super()
        [pt], of_pt = self.of_pt, value.of_pt
        query_of_pt, query_of_ft = query.chunk(2)
        out_of_pt = pt(query_of_pt, of_pt.key, of_pt.value)
        return torch.cat([out_of_pt, stock.forward(query_of_ft, key, value.tokens_TK)])


def positions_of(positions: Tensor, rows_R: Tensor) -> Both:
    """Those of the keys' stand-ins, and of the queries."""
    of_rows = positions[rows_R]
    return Both(of_rows, torch.cat([of_rows, of_rows]))
