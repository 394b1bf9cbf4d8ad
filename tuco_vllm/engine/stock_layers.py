"""vLLM's own decoder layers, opened: any family's, with queries on rows, without a line of its code.

A stock layer is a function of (positions, hidden states, residual) in which three submodules say all that
matters here: its norms (where the stream is added up), its qkv projection (which tokens ask) and its rope
(at which positions). Their classes are exchanged for subclasses that take the objects below where stock
ones take tensors, and act on rows; given tensors, they are stock. So a layer's code runs as it is, and the
state travels through its own arguments::

    called with     M_before, Pending(x)       or Stream(x), None, by the first layer
    input norm      M_before, Pending  ->  normed, Stream      x' = x + M_before
    attention                 normed   ->  A
    second norm            A, Stream   ->  normed, Done        x'' = x' + A, and A on the rows
    MLP                       normed   ->  M
    returns         M, Done

The norm that meets a ``Stream`` is the one that adds attention, whatever norms a family has between (Gemma's
post-norms get tensors), so A and M are what joins the stream (paper §3), A + M the layer's update.

``keep_rows`` is for FT's layers: they run on all tokens, bit for bit vLLM's, and hand out A on the rows.
``query_rows`` is for PT's layers, and for FT's last when it scores: keys and values of all tokens, all else
on rows, which may be float32 where the model is not (``wide_rows``). Granite's layer adds A and M itself,
scaled; it is given the form above first (``_AddsScaled``).

Shape suffixes: T tokens that the layer is called for, R rows, H hidden size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tuco_kernels import add_rms_norm

from tuco_vllm.engine.compat import GemmaRMSNorm, GraniteDecoderLayer, VllmConfig
from tuco_vllm.engine.layer_structure import attention_of, norms_of
from tuco_vllm.engine.rows import Selection, rows_backend
from tuco_vllm.engine.rows_projection import Both, cut_projections, query_only
from tuco_vllm.engine.wide_rows import mix, sharing_cache, twin, widen


class Pending(NamedTuple):
    """The stream, to which the hidden states beside it are still to be added."""

    x_TH: Tensor
    rows_R: Tensor


class Stream(NamedTuple):
    """The stream, complete; without rows, on the rows alone."""

    x: Tensor
    rows_R: Tensor | None


class Again(NamedTuple):
    """The stream on the rows, for a layer that has run on all tokens before.

    ``written_RH`` stands in for the keys, which nobody reads. It must come of that layer's attention output:
    then no compiler puts the second run's attention before the first one's keys are in the cache.
    """

    x_RH: Tensor
    written_RH: Tensor


class Done(NamedTuple):
    """Behind attention: A on the rows; FT's layers have the stream too."""

    attention_RH: Tensor
    x_TH: Tensor | None


class OwnForm:
    """Mixed into a layer whose own code takes and returns the above (``backend_layers``)."""

    def query_rows(self, select: Selection) -> str:
        """What the function of that name does."""
        raise NotImplementedError


def layer_arguments(x_TH: Tensor, delta_TH: Tensor | None, rows_R: Tensor) -> dict[str, Any]:
    """A layer's input: the stream, to which ``delta_TH``, the MLP output before it, is not yet added."""
    if delta_TH is None:
        return {"hidden_states": Stream(x_TH, rows_R), "residual": None}
    return {"hidden_states": delta_TH, "residual": Pending(x_TH, rows_R)}


def stream_on_rows(x_TH: Tensor, delta_TH: Tensor | None, rows_R: Tensor, dtype: torch.dtype) -> Tensor:
    """The stream that a layer is given, on the rows; summed in ``dtype``."""
    x_RH = x_TH[rows_R].to(dtype)
    return x_RH if delta_TH is None else delta_TH[rows_R].to(dtype) + x_RH


def keep_rows(layer: Any) -> None:
    """Let a stock layer hand out its attention output on rows; to its stream nothing changes."""
    if isinstance(layer, OwnForm):
        return
    for norm in norms_of(in_one_form(layer)):
        open_norm(norm, layer)


def open_norm(norm: Any, layer: Any) -> None:
    """Let a norm on FT's stream, one of ``layer``'s or the last one behind it, add as that layer does."""
    norm.adds_apart = isinstance(layer, GraniteDecoderLayer | OwnForm)
    mix(norm, _KeepingNorm)


def rows_again(layer: Any, vllm_config: VllmConfig, select: Selection) -> Any:
    """A second layer of the weights and the cache of a stock one, for float32 rows alone (``Again``)."""
    again = twin(layer)
    attention = attention_of(again)
    attention.attn = sharing_cache(attention.attn, vllm_config)
    query_rows(again, vllm_config, select, wide=True)
    query_only(attention)
    return again


def query_rows(layer: Any, vllm_config: VllmConfig, select: Selection, wide: bool = False) -> str:
    """Cut a stock layer to rows: q, attention and all after it; k and v stay those of all tokens.

    Returns the engine's name of its attention. ``select`` says which rows of a batch the queries are;
    ``wide`` rows are float32 (``wide_rows``), others the model's dtype. Before the weights load: q's and kv's
    are parted behind that. ValueError says what of the layer does not fit.
    """
    if isinstance(layer, OwnForm):
        return layer.query_rows(select)
    attention = attention_of(layer)
    open_norms_on_rows(layer, vllm_config, wide)
    cut_projections(attention, vllm_config, wide)
    attention.attn.attn_backend = rows_backend(attention.attn.attn_backend, select)
    if wide:
        widen(layer, attention)
    return str(attention.attn.layer_name)


def open_norms_on_rows(layer: Any, vllm_config: VllmConfig, wide: bool) -> None:
    """Let a layer's norms act on rows."""
    rounds = _norms_rounded_sum(vllm_config)
    for norm in norms_of(in_one_form(layer)):
        # vLLM's kernel is for weights of the stream's dtype; Gemma's norm brings 1 + w in float32.
        norm.rounds_sum = rounds and not isinstance(norm, GemmaRMSNorm)
        norm.rounds_sum |= isinstance(layer, GraniteDecoderLayer)
        norm.wide, norm.row_dtype = wide, torch.float32 if wide else vllm_config.model_config.dtype
        mix(norm, _RowsNorm)


class _KeepingNorm:
    """FT's. vLLM's fused ops may write into what they are given: A is gathered before."""

    def forward(self, x: Any, residual: Any = None) -> Any:
        stock: Any = super()
        if isinstance(x, Stream):
            return stock.forward(x.x)
        if isinstance(residual, Pending):
            normed_TH, x_TH = self._add_and_norm(x, residual.x_TH)
            return normed_TH, Stream(x_TH, residual.rows_R)
        if isinstance(residual, Stream):
            attention_RH = x[residual.rows_R]
            normed_TH, x_TH = self._add_and_norm(x, residual.x)
            return normed_TH, Done(attention_RH, x_TH)
        return stock.forward(x, residual)

    def _add_and_norm(self: Any, h_TH: Tensor, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        stock: Any = super()
        if not self.adds_apart:
            return stock.forward(h_TH, x_TH)
        x_TH = x_TH + h_TH
        return stock.forward(x_TH), x_TH


class _RowsNorm:
    """PT's: writes into nothing it is given, since FT's layer has yet to run on it."""

    def forward(self: Any, x: Any, residual: Any = None) -> Any:
        if isinstance(x, Again):
            return Both(x.written_RH, self._add_and_norm(None, x.x_RH))
        if isinstance(x, Stream):
            return self._both(None, x.x, x.rows_R, None)
        if isinstance(residual, Pending):
            x_RH = stream_on_rows(residual.x_TH, x, residual.rows_R, self.row_dtype)
            return self._both(x, residual.x_TH, residual.rows_R, x_RH), Stream(x_RH, None)
        if isinstance(residual, Again):
            return self._add_and_norm(x, residual.x_RH), Done(x, None)
        if isinstance(residual, Stream):
            x_RH = residual.x
            if residual.rows_R is not None:
                x_RH = stream_on_rows(x_RH, None, residual.rows_R, self.row_dtype)
            return self._add_and_norm(x, x_RH), Done(x, None)
        if self.wide:
            return self._add_and_norm(None, x)
        stock: Any = super()
        return stock.forward(x, residual)

    def _both(self: Any, h_TH: Any, x_TH: Tensor, rows_R: Any, x_RH: Tensor | None) -> Both:
        normed_TH = self._add_and_norm(h_TH, x_TH)
        if not self.wide:
            return Both(normed_TH, normed_TH[rows_R])
        x_RH = stream_on_rows(x_TH, None, rows_R, self.row_dtype) if x_RH is None else x_RH
        return Both(normed_TH, self._add_and_norm(None, x_RH))

    def _add_and_norm(self: Any, h: Tensor | None, x: Tensor) -> Tensor:
        return add_rms_norm(
            h,
            x,
            self.weight.to(x.dtype) if x.dtype == torch.float32 else self.weight,
            self.variance_epsilon,
            plus_one=isinstance(self, GemmaRMSNorm),
            round_sum=self.rounds_sum,
        )


class _AddsScaled:
    """Granite's layer as others are, its adds left to the norms; called as the stock model does, stock."""

    def forward(self: Any, positions: Any, hidden_states: Any, residual: Any = None) -> Any:
        stock: Any = super()
        if residual is None and isinstance(hidden_states, Tensor):
            return stock.forward(positions, hidden_states)
        if residual is None:
            normed, residual = self.input_layernorm(hidden_states), hidden_states
        else:
            normed, residual = self.input_layernorm(hidden_states, residual)
        attention = self.self_attn(positions=positions, hidden_states=normed) * self.residual_multiplier
        normed, residual = self.post_attention_layernorm(attention, residual)
        return self.mlp(normed) * self.residual_multiplier, residual


def in_one_form(layer: Any) -> Any:
    """The layer, as one whose adds are its norms'."""
    if type(layer) is GraniteDecoderLayer:
        mix(layer, _AddsScaled)
    return layer


def _norms_rounded_sum(vllm_config: VllmConfig) -> bool:
    """Whether vLLM's fused add and norm rounds the sum to 16 bits *before* it normalises.

    Its own ("native") implementation does not, its CUDA kernel, the choice without torch.compile, does. PT's
    norms must round where FT's do: the other place put a pair's bfloat16 noise floor at 5e-3.
    """
    priority: Any = vllm_config.kernel_config.ir_op_priority
    return bool(priority.fused_add_rms_norm) and priority.fused_add_rms_norm[0] != "native"
