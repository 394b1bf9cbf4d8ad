"""Hugging Face's decoder layers, which vLLM's Transformers backend runs where vLLM has no file of a family.

The backend exchanges what is in a layer (norms, projections, attention) for vLLM's own, and leaves the code
that joins it: a batch dimension of 1, rope's angles as an argument, A and M added at once, in the stream's
dtype. ``give_form`` lets such a layer be called as ``stock_layers`` calls all others too::

    called with     M_before, Pending(x)    or Stream(x), None, by the first layer
    returns         M, Done                 A and M as they join the stream, behind post-norms

On all tokens (FT's) attention is the layer's own code, so that its stream is the backend's bit for bit. On
rows (PT's, and FT's last when it scores) it is the code below, with the layer's parts: theirs takes as many
queries as keys. Called as its own model calls it, a layer is what it was.

Shape suffixes: T tokens that the layer is called for, R rows, N either of them, H hidden size, Q and K widths
of all query and key heads.
"""

import inspect
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tuco_vllm.engine.compat import PPMissingLayer, QKVParallelLinear, RMSNorm
from tuco_vllm.engine.rows import Selection, rows_backend
from tuco_vllm.engine.rows_projection import Both, cut_qkv
from tuco_vllm.engine.stock_layers import Done, OwnForm, Pending
from tuco_vllm.engine.wide_rows import mix

_NORM_PLACES = (
    ("input_layernorm", None, "post_attention_layernorm", None),
    (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
)
"""Names of the norms before attention, behind it, before the MLP and behind it: Llama's way, and OLMo 2's."""

_MOVING_ROPES = ("dynamic", "longrope")
"""Kinds whose angles depend on the longest position that they are asked for, which rows need not have."""


def give_form(model: Any) -> None:
    """Let the layers of a model that the Transformers backend built be called as ``stock_layers`` does.

    ValueError says what of a layer does not fit. Before the weights load. Other models stay as they are.
    """
    decoder = getattr(model, "model", None)
    if not isinstance(decoder, PreTrainedModel):
        return
    text = decoder.config.get_text_config()
    rope: Any = getattr(decoder, "rotary_emb", None)
    by_kind = "layer_type" in inspect.signature(type(rope).forward).parameters
    for index, layer in enumerate(decoder.layers):
        if isinstance(layer, PPMissingLayer):  # another pipeline stage's
            continue
        form: Any = layer
        form.norm_places = _norm_places_of(layer)
        _expect_attention(layer)
        kinds = rope.rope_type if isinstance(rope.rope_type, dict) else {"": rope.rope_type}
        if moving := set(kinds.values()) & set(_MOVING_ROPES):
            raise _misfit(layer, f"has a rope ({', '.join(moving)}) whose angles depend on the batch")
        form.rope = (rope,)  # in a tuple: it is the model's child
        form.rope_kind = (text.layer_types[index],) if by_kind else ()
        form.turn = import_module(type(layer.self_attn).__module__).apply_rotary_pos_emb
        mix(layer, _BackendLayer)


class _BackendLayer(OwnForm):
    """A layer of Hugging Face's, by either form."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "positions" not in kwargs:
            stock: Any = super()
            return stock.forward(*args, **kwargs)
        return self._opened(**kwargs)

    def query_rows(self: Any, select: Selection) -> str:
        attention = self.self_attn
        cut_qkv(attention.qkv_proj, wide=False)
        attention.attn.attn_backend = rows_backend(attention.attn.attn_backend, select)
        return str(attention.attn.layer_name)

    def _opened(self: Any, positions: Any, hidden_states: Any, residual: Any) -> tuple[Tensor, Done]:
        if isinstance(residual, Pending):
            x_TH, rows_R = residual.x_TH + hidden_states, residual.rows_R
        else:
            x_TH, rows_R = hidden_states.x, hidden_states.rows_R
        x, on_rows = x_TH[None], isinstance(positions, Both)
        normed = self._norm(0, x)
        if on_rows:
            attention = self._attend(normed[0], rows_R, positions)[None]
            x = x_TH[rows_R][None]
        else:
            angles = self._angles(positions, x)
            attention, _ = self.self_attn(
                hidden_states=normed, position_embeddings=angles, attention_mask=None
            )
        attention = self._norm(1, attention)
        x = x + attention
        mlp = self._norm(3, self.mlp(self._norm(2, x)))[0]
        if on_rows:
            return mlp, Done(attention[0], None)
        return mlp, Done(attention[0][rows_R], x[0])

    def _norm(self: Any, place: int, x: Tensor) -> Tensor:
        name = self.norm_places[place]
        return x if name is None else getattr(self, name)(x)

    def _attend(self: Any, normed_TH: Tensor, rows_R: Tensor, positions: Both) -> Tensor:
        """Attention's output on the rows ``[R, H]``."""
        attention = self.self_attn
        (query_RQ, key_TK, value_TK), _ = attention.qkv_proj(Both(normed_TH, normed_TH[rows_R]))
        if hasattr(attention, "q_norm"):
            query_RQ, key_TK = attention.q_norm(query_RQ), attention.k_norm(key_TK)
        if getattr(attention, "use_rope", True):  # SmolLM3 has layers without
            query_RQ = self._turned(query_RQ, positions.rows)
            key_TK = self._turned(key_TK, positions.tokens)
        return attention.o_proj(attention.attn(query_RQ, key_TK, value_TK))

    def _turned(self: Any, heads: Tensor, positions_N: Tensor) -> Tensor:
        heads = heads.unflatten(-1, (-1, self.self_attn.head_dim))
        cosines, sines = self._angles(positions_N, heads)
        # Theirs turns queries and keys at once, for the same positions: here it gets a head to spare.
        turned, _ = self.turn(heads, heads[:, :1], cosines[0], sines[0])
        return turned.flatten(1)

    def _angles(self: Any, positions_N: Tensor, of_dtype: Tensor) -> tuple[Tensor, Tensor]:
        [rope] = self.rope
        return rope(of_dtype, positions_N[None], *self.rope_kind)


def _norm_places_of(layer: Any) -> tuple[str | None, ...]:
    norms = {name for name, child in layer.named_children() if isinstance(child, RMSNorm)}
    for places in _NORM_PLACES:
        if norms == {name for name in places if name}:
            return places
    raise _misfit(layer, f"has the RMS norms {', '.join(sorted(norms)) or '(none)'}")


def _expect_attention(layer: Any) -> None:
    """What ``_attend`` does is all that there is to do."""
    attention: Any = getattr(layer, "self_attn", None)
    children = {name for name, _ in attention.named_children()} if isinstance(attention, nn.Module) else set()
    if children - {"q_norm", "k_norm"} != {"qkv_proj", "o_proj", "attn"}:
        raise _misfit(layer, f"has an attention of {', '.join(sorted(children)) or 'another name'}")
    qkv = attention.qkv_proj
    if type(qkv) is not QKVParallelLinear or qkv.head_size != qkv.v_head_size:
        raise _misfit(layer, "has no projection of q, k and v of one width")
    if "q_norm" in children and len(attention.q_norm.weight) != qkv.total_num_heads * qkv.head_size:
        raise _misfit(layer, "has norms of single query heads")
    if attention.attn.attn_type != "decoder":
        raise _misfit(layer, "has no causal attention over one cache")


def _misfit(layer: Any, why: str) -> ValueError:
    return ValueError(f"Hugging Face's {type(layer).__name__} does not fit TuCo's executor: it {why}")
