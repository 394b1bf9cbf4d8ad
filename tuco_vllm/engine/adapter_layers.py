"""A base model's decoder layers under LoRA adapters: one run that gives FT on all tokens and PT on the rows.

PT is the base and FT the base with an adapter, so at alpha = 1 both are given one stream, one norm of it and
one product W norm(x), from which PT's queries, keys and values are taken before the adapter's share is added.
Behind attention nothing is shared, but the weights are: PT's rows are put behind FT's tokens, as tokens
without an adapter, and every product of the layer reads its weights once for both::

    called with     M_before, Pending(x)       or Stacked(x), None, by the first layer; [T tokens, S rows]
    input norm      M_before, Pending  ->  Normed, Stacked     x' = x + M_before
    qkv                       Normed   ->  q of [T, S], k of [T, U], v of both
    attention               q, k, v    ->  FT's from its cache [T], PT's from a cache of its own [S]
    second norm            A, Stacked  ->  normed, Parted      x'' = x' + A, and A of either on the rows
    returns                            M, Parted

Everything between is vLLM's own code on T + S tokens, its LoRA products included: in their mapping the rows
come last and have no adapter (``adapter_runner``). Given tensors, a layer is stock.

Shape suffixes: T tokens of the batch, U those whose PT keys and values are written, S rows of PT, H hidden
size, Q and K the sizes of all heads' queries and keys.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuco_vllm.engine.compat import VllmConfig
from tuco_vllm.engine.layer_structure import attention_of, norms_of
from tuco_vllm.engine.rows import Selection, rows_backend
from tuco_vllm.engine.rows_projection import Both, Projected, turn_apart
from tuco_vllm.engine.stock_layers import in_one_form, open_norm
from tuco_vllm.engine.wide_rows import mix, twin


class Keys(NamedTuple):
    """PT's keys, turned, and values of tokens."""

    key: Tensor
    value: Tensor


class Step(NamedTuple):
    """Which tokens of the batch PT has to do with."""

    rows_S: Tensor
    tokens_U: Tensor | None = None
    """None for all of them."""
    apart: list[Keys] | None = None
    """Where the rows are another layer's (``adapter_rows``), not behind the tokens: what it is handed."""

    @property
    def behind(self) -> int:
        """Rows behind the tokens."""
        return 0 if self.apart is not None else self.rows_S.shape[0]


class Stacked(NamedTuple):
    """The stream, complete: of the tokens, and behind them of the rows."""

    x: Tensor
    step: Step


class Pending(NamedTuple):
    """The same, to which the hidden states beside it are still to be added."""

    x: Tensor
    step: Step


class Normed(NamedTuple):
    """What the projection of q, k and v is given."""

    x: Tensor
    step: Step


class Values(NamedTuple):
    """What passes for an attention's values."""

    tokens_TK: Tensor
    of_pt: Any
    """PT's, of U tokens; in ``adapter_rows`` its keys too."""
    apart: list[Keys] | None = None


class Parted(NamedTuple):
    """Behind attention: its output on the rows, FT's and PT's, and the stream."""

    of_ft_SH: Tensor
    of_pt_SH: Tensor
    x: Tensor


def layer_arguments(x: Tensor, delta: Tensor | None, step: Step) -> dict[str, Any]:
    """A layer's input: the stream of T tokens and S rows, to which ``delta``, the MLP output before it, is
    not yet added. Of the rows in both, what the layer before has left is overwritten with FT's."""
    tokens = x.shape[0] - step.behind
    if step.behind:
        x[tokens:] = x[step.rows_S]
    if delta is None:
        return {"hidden_states": Stacked(x, step), "residual": None}
    if step.behind:
        delta[tokens:] = delta[step.rows_S]
    return {"hidden_states": delta, "residual": Pending(x, step)}


def positions_of(positions_T: Tensor, step: Step) -> Both:
    """Those of the keys, and of the queries."""
    of_keys = positions_T if step.tokens_U is None else positions_T[step.tokens_U]
    of_rows = positions_T[step.rows_S[: step.behind]]
    return Both(torch.cat([positions_T, of_keys]), torch.cat([positions_T, of_rows]))


def stack_rows(layer: Any, vllm_config: VllmConfig, select: Selection) -> str:
    """Let a stock layer take PT's rows behind FT's tokens, once vLLM has wrapped it (``open_projection``).

    Returns the engine's name of PT's attention. ``select`` says which rows of a batch its queries are.
    ValueError says what of the layer does not fit.
    """
    for norm in norms_of(in_one_form(layer)):
        open_norm(norm, layer)
        mix(norm, _StackedNorm)
    attention = attention_of(layer)
    turn_apart(attention)
    of_pt = _with_own_cache(attention.attn, vllm_config, select)
    attention.attn.of_pt = (of_pt,)  # in a tuple: it is no part of what is loaded
    mix(attention.attn, _TwoCaches)
    return str(of_pt.layer_name)


def open_projection(layer: Any) -> None:
    """Let a layer's projection, which vLLM has wrapped for LoRA, keep the base's share for PT."""
    projection = opened_attention(layer).qkv_proj
    if not hasattr(projection, "base_layer"):
        raise ValueError(f"vLLM has not wrapped {type(projection).__name__} for LoRA")
    mix(projection, _BaseKept)


def opened_attention(layer: Any) -> Any:
    """The attention of a layer that has been opened, or wrapped."""
    return next(child for child in layer.children() if hasattr(child, "qkv_proj"))


def lora_mapping(layer: Any) -> Any:
    """Which adapter each token of a step has, in vLLM's form: one for all layers."""
    return opened_attention(layer).qkv_proj.punica_wrapper


def _with_own_cache(attn: Any, vllm_config: VllmConfig, select: Selection) -> Any:
    """Attention like ``attn``, for queries of rows, over keys and values of its own."""
    own = twin(attn)
    own.impl = copy.copy(attn.impl)
    own.layer_name = f"{attn.layer_name}.pt"
    own.attn_backend = rows_backend(attn.attn_backend, select)
    vllm_config.compilation_config.static_forward_context[own.layer_name] = own
    return own


class _StackedNorm:
    """Mixed over ``stock_layers._KeepingNorm``. vLLM's fused ops may write into what they are given, so A of
    the rows is copied before."""

    def forward(self: Any, x: Any, residual: Any = None) -> Any:
        stock: Any = super()
        if isinstance(x, Stacked):
            return Normed(stock.forward(x.x), x.step)
        if isinstance(residual, Pending):
            normed, x = self._add_and_norm(x, residual.x)
            return Normed(normed, residual.step), Stacked(x, residual.step)
        if isinstance(residual, Stacked):
            step = residual.step
            of_ft_SH, of_pt_SH = x[step.rows_S], x[x.shape[0] - step.behind :].clone()
            normed, x = self._add_and_norm(x, residual.x)
            return normed, Parted(of_ft_SH, of_pt_SH, x)
        return stock.forward(x, residual)


class _BaseKept:
    """One base product of tokens and rows. The rows' queries are PT's as they are, for a row has no adapter;
    keys and values of PT's are the base's of the tokens."""

    def forward(self: Any, normed: Any) -> Any:
        stock: Any = super()
        if not isinstance(normed, Normed):
            return stock.forward(normed)
        base, step, tokens_U = self.base_layer, normed.step, normed.step.tokens_U
        tokens = normed.x.shape[0] - step.behind
        query, key = base.num_heads * base.head_size, base.num_kv_heads * base.head_size
        product = base.quant_method.apply(base, normed.x, base.bias)
        of_pt = product[:tokens, query:]
        of_pt = of_pt.clone() if tokens_U is None else of_pt[tokens_U]
        query_Q, key_K, value_K = self._apply_lora_to_output(normed.x, product).split([query, key, key], -1)
        keys = torch.cat([key_K[:tokens], of_pt[:, :key]])
        return Projected(query_Q, keys, Values(value_K[:tokens], of_pt[:, key:], step.apart)), None


class _TwoCaches:
    """FT's tokens against FT's keys and values, PT's rows against PT's."""

    def forward(self: Any, query: Tensor, key: Tensor, value: Any, *args: Any, **kwargs: Any) -> Tensor:
        stock: Any = super()
        if not isinstance(value, Values):
            return stock.forward(query, key, value, *args, **kwargs)
        [pt], tokens = self.of_pt, value.tokens_TK.shape[0]
        of_ft = stock.forward(query[:tokens], key[:tokens], value.tokens_TK)
        if value.apart is not None:
            value.apart.append(Keys(key[tokens:], value.of_pt))
            return of_ft
        return torch.cat([of_ft, pt(query[tokens:], key[tokens:], value.of_pt)])
