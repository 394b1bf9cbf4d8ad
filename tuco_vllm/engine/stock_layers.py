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
on rows. Granite's layer adds A and M itself, scaled; it is given the form above first (``_AddsScaled``).

Shape suffixes: T tokens that the layer is called for, R rows, H hidden size.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tuco_kernels import add_rms_norm

from tuco_vllm.engine.compat import (
    GemmaRMSNorm,
    GraniteDecoderLayer,
    LinearMethodBase,
    Phi3LongRoPEScaledRotaryEmbedding,
    VllmConfig,
)
from tuco_vllm.engine.layer_structure import attention_of, expect_positions, norms_of
from tuco_vllm.engine.rows import Selection, rows_backend


class Pending(NamedTuple):
    """The stream, to which the hidden states beside it are still to be added."""

    x_TH: Tensor
    rows_R: Tensor


class Stream(NamedTuple):
    """The stream, complete; without rows, on the rows alone."""

    x: Tensor
    rows_R: Tensor | None


class Done(NamedTuple):
    """Behind attention: A on the rows; FT's layers have the stream too."""

    attention_RH: Tensor
    x_TH: Tensor | None


class Both(NamedTuple):
    """A quantity of all tokens and of the rows."""

    tokens: Tensor
    rows: Tensor


class Projected(NamedTuple):
    """What ``qkv.split`` is called on."""

    query_RQ: Tensor
    key_TK: Tensor
    value_TK: Tensor

    def split(self, sizes: Any, dim: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """They are split."""
        return self.query_RQ, self.key_TK, self.value_TK


def layer_arguments(x_TH: Tensor, delta_TH: Tensor | None, rows_R: Tensor) -> dict[str, Any]:
    """A layer's input: the stream, to which ``delta_TH``, the MLP output before it, is not yet added."""
    if delta_TH is None:
        return {"hidden_states": Stream(x_TH, rows_R), "residual": None}
    return {"hidden_states": delta_TH, "residual": Pending(x_TH, rows_R)}


def keep_rows(layer: Any) -> None:
    """Let a stock layer hand out its attention output on rows; to its stream nothing changes."""
    for norm in norms_of(_in_one_form(layer)):
        open_norm(norm, layer)


def open_norm(norm: Any, layer: Any) -> None:
    """Let a norm on FT's stream, one of ``layer``'s or the last one behind it, add as that layer does."""
    norm.adds_apart = isinstance(layer, GraniteDecoderLayer)
    _mix(norm, _KeepingNorm)


def query_rows(layer: Any, vllm_config: VllmConfig, select: Selection) -> str:
    """Cut a stock layer to rows: q, attention and all after it; k and v stay those of all tokens.

    Returns the engine's name of its attention. ``select`` says which rows of a batch the queries are. Before
    the weights load: q's and kv's are parted behind that. ValueError says what of the layer does not fit.
    """
    norms, attention = norms_of(_in_one_form(layer)), attention_of(layer)
    rounds = _norms_rounded_sum(vllm_config)
    for norm in norms:
        # vLLM's kernel is for weights of the stream's dtype; Gemma's norm brings 1 + w in float32.
        norm.rounds_sum = rounds and not isinstance(norm, GemmaRMSNorm)
        norm.rounds_sum |= isinstance(layer, GraniteDecoderLayer)
        _mix(norm, _RowsNorm)
    attention.qkv_proj.quant_method = _CutMethod(attention.qkv_proj)
    _mix(attention.qkv_proj, _RowsQKV)
    expect_positions(attention.rotary_emb, vllm_config.model_config.max_model_len)
    attention.rotary_emb = copy.copy(attention.rotary_emb)  # vLLM shares one among layers and models
    _mix(attention.rotary_emb, _RowsRope)
    attention.attn.attn_backend = rows_backend(attention.attn.attn_backend, select)
    return str(attention.attn.layer_name)


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

    def forward(self, x: Any, residual: Any = None) -> Any:
        if isinstance(x, Stream):
            return self._both(self._add_and_norm(None, x.x), x.rows_R)
        if isinstance(residual, Pending):
            rows_R = residual.rows_R
            normed = self._both(self._add_and_norm(x, residual.x_TH), rows_R)
            return normed, Stream(x[rows_R] + residual.x_TH[rows_R], None)
        if isinstance(residual, Stream):
            x_RH = residual.x if residual.rows_R is None else residual.x[residual.rows_R]
            return self._add_and_norm(x, x_RH), Done(x, None)
        stock: Any = super()
        return stock.forward(x, residual)

    def _both(self, normed_TH: Tensor, rows_R: Any) -> Both:
        return Both(normed_TH, normed_TH[rows_R])

    def _add_and_norm(self: Any, h: Tensor | None, x: Tensor) -> Tensor:
        return add_rms_norm(
            h,
            x,
            self.weight,
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


class _RowsQKV:
    """q of the rows, k and v of all tokens."""

    def forward(self: Any, normed: Both) -> tuple[Projected, None]:
        query_RQ = self.quant_method.product(self.q_part, normed.rows)
        key_value_T2K = self.quant_method.product(self.kv_part, normed.tokens)
        return Projected(query_RQ, *key_value_T2K.chunk(2, dim=-1)), None


class _CutMethod(LinearMethodBase):
    """Parts the weight that a stock loader has filled: q's rows and kv's, views of it, a product each."""

    def __init__(self, qkv: Any) -> None:
        self.stock = qkv.quant_method
        self.q_size = qkv.num_heads * qkv.head_size

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """They have been created."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """vLLM calls this once, on every module's method."""
        for name, part in (("q_part", slice(self.q_size)), ("kv_part", slice(self.q_size, None))):
            product = nn.Module()
            for key in ("weight", "bias"):
                whole = getattr(layer, key)
                cut = None if whole is None else nn.Parameter(whole.data[part], requires_grad=False)
                product.register_parameter(key, cut)
            self.stock.process_weights_after_loading(product)
            setattr(layer, name, product)
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # a CPU has packed copies
        layer.bias = None

    def product(self, part: Any, x: Tensor) -> Tensor:
        """``x`` times one part's weight, plus its bias."""
        return self.stock.apply(part, x, part.bias)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The whole product is never taken."""
        raise NotImplementedError


class _RowsRope:
    """Each at its own positions."""

    def forward(self: Any, positions: Both, query_RQ: Tensor, key_TK: Tensor) -> tuple[Tensor, Tensor]:
        return self._turn(positions.rows, query_RQ), self._turn(positions.tokens, key_TK)

    def _turn(self: Any, positions: Tensor, heads: Tensor) -> Tensor:
        stock: Any = super()
        # The one rope that insists on a key gets a head of the query; it writes into neither.
        key = heads[:, : self.head_size] if isinstance(self, Phi3LongRoPEScaledRotaryEmbedding) else None
        return stock.forward(positions, heads, key)[0]


def _in_one_form(layer: Any) -> Any:
    if type(layer) is GraniteDecoderLayer:
        _mix(layer, _AddsScaled)
    return layer


def _mix(module: Any, mixin: type) -> None:
    stock = type(module)
    module.__class__ = type(f"{mixin.__name__.strip('_')}Of{stock.__name__}", (mixin, stock), {})


def _norms_rounded_sum(vllm_config: VllmConfig) -> bool:
    """Whether vLLM's fused add and norm rounds the sum to 16 bits *before* it normalises.

    Its own ("native") implementation does not, its CUDA kernel, the choice without torch.compile, does. PT's
    norms must round where FT's do: the other place put a pair's bfloat16 noise floor at 5e-3.
    """
    priority: Any = vllm_config.kernel_config.ir_op_priority
    return bool(priority.fused_add_rms_norm) and priority.fused_add_rms_norm[0] != "native"
